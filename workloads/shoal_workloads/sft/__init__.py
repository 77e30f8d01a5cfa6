"""Supervised fine-tuning of a Hugging Face checkpoint on packed conversations (docs/fine-tuning.md)."""

from shoal_workloads.sft.workload import Sft

__all__ = ["Sft"]
