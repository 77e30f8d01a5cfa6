"""When to save and copy, what to keep of it, and what a node that goes can still save: pure decisions."""
