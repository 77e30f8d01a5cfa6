"""What is random in a user's code hangs on what it is done for, not on who does it or what was done before."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["key_of", "restored", "seed_all", "seeded"]


def key_of(*parts: int | str) -> int:
    """A seed, 63 bits, that these names and numbers stand for."""
    said = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(said, digest_size=8, person=b"shoal-torch").digest(), "little") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the generators of torch, Python and NumPy start from `seed`; outside as `restored`."""
    with restored():
        seed_all(seed)
        yield


def seed_all(seed: int) -> None:
    """Have the generators of torch, Python and NumPy start from `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # as `torch.manual_seed`, which takes a hundred times as long
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def restored() -> Iterator[None]:
    """Outside, the generators go on where they were, but for a GPU's, which nobody else uses. It takes ten times as
    long as to seed them."""
    python, numpy, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torchs)
