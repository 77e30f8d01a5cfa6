"""One thread for torch, and worlds of two and of four processes that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from shoal.testing import World, preload, world

preload("shoal_workloads.pretrain")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The models are tiny, and threads that wait for each other on a busy machine take far longer than one alone."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pair() -> Iterator[World]:
    """Two processes that run a function as a gloo world of two."""
    with world(2) as found:
        yield found


@pytest.fixture(scope="session")
def four() -> Iterator[World]:
    """Four processes that run a function as a gloo world of four."""
    with world(4) as found:
        yield found
