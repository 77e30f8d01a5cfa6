"""What carries a test's tensors: gloo, or the backend that fails as NCCL does, where nothing raises, sends have no tags
and only an abort ends a wait (`shoal.testing.fakenccl`)."""

from __future__ import annotations

import pytest

from shoal.testing import fakenccl

__all__ = ["BOTH", "BOTH_LONG", "IMITATED", "IMITATED_LONG"]

IMITATED = pytest.param(fakenccl.NAME, marks=pytest.mark.fakenccl)
IMITATED_LONG = pytest.param(fakenccl.NAME, marks=[pytest.mark.fakenccl, pytest.mark.long])
BOTH = pytest.mark.parametrize("backend", ["gloo", IMITATED])
BOTH_LONG = pytest.mark.parametrize("backend", ["gloo", IMITATED_LONG])
"""The same, where the second is for `make test-long` alone."""
