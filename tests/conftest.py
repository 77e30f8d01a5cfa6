"""Settings of all tests: no example has a deadline, since a slow machine is no failure; who logs as somebody
(`shoal.log.begin`) does so within one test. Where several processes share the tests out (`-n 2 --dist loadgroup`), a
file stays together, and one cluster is up at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.s3_server import s3_server

settings.register_profile("shoal", deadline=None)
settings.load_profile("shoal")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        room = "cluster" if item.get_closest_marker("cluster") else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(room))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The URL of an S3 for all tests that do it no harm: they keep to buckets or prefixes of their own, and are let in
    by `tests.support.s3_server.account`."""
    with s3_server() as url:
        yield url


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    yield
    logger = logging.getLogger("shoal")
    logger.handlers[:], logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
