"""Writing a corpus: documents through the recipe into shards, and the manifest that makes it whole."""
