"""Places for checkpoints: a folder, and a bucket of an S3 in a process of its own."""

from __future__ import annotations

import secrets
from pathlib import Path

import boto3
import pytest

from tests.support.s3_server import account

__all__ = ["place"]


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty one's address, with letters in it that addresses may have."""
    name = "a b%20ü#+"
    if request.param == "folder":
        return str(tmp_path / name)
    account(monkeypatch, request.getfixturevalue("s3_endpoint"), tmp_path)
    boto3.client("s3").create_bucket(Bucket="runs")
    return f"s3://runs/{secrets.token_hex(4)}/{name}"
