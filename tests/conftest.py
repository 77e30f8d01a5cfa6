"""Settings of all tests: no example has a deadline, since a slow machine is no failure; who logs as somebody
(`shoal.log.begin`) does so within one test."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("shoal", deadline=None)
settings.load_profile("shoal")


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    yield
    logger = logging.getLogger("shoal")
    logger.handlers[:], logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
