"""Training a byte-level BPE tokenizer: words counted, pairs merged, the result written with its card."""
