"""Building a corpus: raw text to tokenizer to token shards, on Ray Data."""
