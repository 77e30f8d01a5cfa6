"""Settings of all tests: no example has a deadline, since a slow machine is no failure; who logs as somebody
(`shoal.log.begin`) does so within one test; how processes share the tests out is `tests.support.sharing`'s."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support.s3_server import s3_server
from tests.support.sharing import Rooms, turn

settings.register_profile("shoal", deadline=None)
settings.load_profile("shoal")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: turn(item.path))


@pytest.hookimpl(optionalhook=True)  # where xdist is not at work there is no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Rooms:
    return Rooms(config, log)


os.environ["SHOAL_HARDWARE"] = os.devnull  # what a user's own table says of an H100 is nothing to a test


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The URL of an S3 for all tests that do it no harm: they keep to buckets or prefixes of their own, and are let in
    by `tests.support.s3_server.account`."""
    with s3_server() as url:
        yield url


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables: making them takes seconds, copying them none."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow.tracking import MlflowClient  # seconds

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    yield
    logger = logging.getLogger("shoal")
    logger.handlers[:], logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
