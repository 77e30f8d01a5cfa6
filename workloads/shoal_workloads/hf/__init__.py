"""Hugging Face's format: import and export of the DeepSeek-V3 architecture, and of any model by its tensors' names."""
