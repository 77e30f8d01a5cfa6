"""One thread for torch, and worlds of two and of four processes that all tests share, on the `backend` of a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from shoal.testing import World, preload, world

preload("shoal_workloads.pretrain", "torch._dynamo")  # which a model's first step imports


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The models are tiny, and threads that wait for each other on a busy machine take far longer than one alone."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _pair() -> Iterator[World]:
    with world(2) as found:
        yield found


@pytest.fixture(scope="session")
def _four() -> Iterator[World]:
    with world(4) as found:
        yield found


@pytest.fixture
def backend() -> str:
    """What carries the tensors of a test that is not run on several (`support.backends`)."""
    return "gloo"


@pytest.fixture
def pair(_pair: World, backend: str) -> World:
    """Two processes that run a function as a world of two."""
    _pair.backend = backend
    return _pair


@pytest.fixture
def four(_four: World, backend: str) -> World:
    """Four processes that run a function as a world of four."""
    _four.backend = backend
    return _four
