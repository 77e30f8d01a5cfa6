"""Where the MLflow mirror sends a record: addresses that are taken or refused, and where passwords may stand."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from shoal import tracking
from shoal_core.errors import UserError
from tests.support.mirrored import a_run


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("mlruns", "is no address"),
        ("evil://x", "is no address"),
        ("sqlite:///mlflow.db", "not from the root"),
        ("sqlite://", "not from the root"),
        ("file:mlruns", "no more runs into plain folders"),
        ("file:///data/mlruns", "no more runs into plain folders"),
        ("http:///x", "names no host"),
        ("https://u:HUNTER2@[x", "names no host"),
    ],
)
def test_an_address_that_mlflow_cannot_use_is_refused_before_the_run(uri: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as refused:
        tracking.check_uri(uri)
    assert "HUNTER2" not in str(refused.value)


@pytest.mark.parametrize(
    "uri",
    ["http://h:5000", "https://u:p@h/x", "sqlite:////data/mlflow.db", "postgresql+psycopg2://u:p@h/db",
     "databricks", "databricks://profile"],
)  # fmt: skip
def test_other_addresses_are_taken(uri: str) -> None:
    assert tracking.check_uri(uri) == uri


def test_the_address_and_its_password_may_stand_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "SHOAL_TRACKING_URI", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    run = a_run(tmp_path, 1)
    assert tracking.chosen_uri(None) is None
    with pytest.raises(UserError, match=r"without its password(.|\n)*MLFLOW_TRACKING_URI"):
        tracking.recorded_uri(run.path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@host:5000")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter4")
    assert tracking.chosen_uri(None) == "http://me:hunter2@host:5000"
    assert tracking.chosen_uri("http://other") == "http://other"
    assert tracking.recorded_uri(run.path) == "http://me:hunter2@host:5000"
    assert tracking.credentials() == {"MLFLOW_TRACKING_TOKEN": "hunter4"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI: 'mlruns' is no address"):
        tracking.chosen_uri(None)


@pytest.mark.parametrize("name", ["a b", "a%20b", "a%", "a#1", "a+b", "ä", "a?b"])
def test_a_storage_of_any_name_has_its_database(name: str, tmp_path: Path) -> None:
    database = tmp_path / name / "mlflow.db"
    assert make_url(tracking.default_uri(tmp_path / name / "run")).database == str(database)
