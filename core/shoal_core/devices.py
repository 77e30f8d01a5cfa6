"""What devices are called, and what is known of them without measuring."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["bf16_peak", "device_name"]

PEAKS = {
    "A100": 312e12,
    "A800": 312e12,
    "H100": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200": 989.4e12,
    "H800": 989.4e12,
    "H20": 148e12,
    "GH200": 989.4e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "L40S": 362e12,
}
"""FLOP/s of dense BF16 products, by NVIDIA's data sheets, for words of a device's name as `torch.cuda` gives it."""


def bf16_peak(device: str) -> float | None:
    """BF16 peak (FLOP/s, dense) of a device by its name, such as "NVIDIA H100 80GB HBM3"; None if it is not known."""
    words = device.replace("-", " ").split()
    known = [name for name in PEAKS if set(name.split()) <= set(words)]
    return PEAKS[max(known, key=len)] if known else None


def device_name(kind: str) -> str:
    """What this machine calls the device that a worker computes on. kind: cpu or cuda."""
    if kind == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named and named[0] else platform.processor() or platform.machine()
