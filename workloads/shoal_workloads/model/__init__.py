"""The DeepSeek-V3 architecture: one file a part, put together in `deepseek`."""
