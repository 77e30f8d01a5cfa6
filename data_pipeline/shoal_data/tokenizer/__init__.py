"""A tokenizer.json in use: what it says, what it may not say, and text to token ids with it."""
