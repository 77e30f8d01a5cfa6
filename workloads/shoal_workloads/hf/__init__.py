"""Hugging Face's format of the DeepSeek-V3 architecture: names, configuration, export and import."""
