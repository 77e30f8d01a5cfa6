"""What `shoal cluster` says, without a cluster."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli.cluster import app
from shoal.cluster import local
from shoal.cluster.state import ClusterState, NodeState, save, state_dir, token_file


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterState:
    """A cluster's state, in a folder whose name wants quoting."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "my $(state) folder's"))
    state_dir("mine").mkdir(parents=True)
    made = ClusterState(
        "mine", "id", "process", "up", 6379, 8265, 1, 1, "/tmp/x", nodes=(NodeState("head", "127.0.0.1", 0, 0),)
    )
    save(made)
    token_file("mine").write_text("t0ken")
    return made


@pytest.mark.usefixtures("state")
def test_the_environment_survives_a_shell_whatever_the_folders_name() -> None:
    lines = CliRunner().invoke(app, ["env", "--name", "mine"], catch_exceptions=False).output
    shell = subprocess.run(
        ["sh", "-c", f'{lines}\ncat "$RAY_AUTH_TOKEN_PATH"'], capture_output=True, text=True, env=os.environ, check=True
    )
    assert shell.stdout == "t0ken"


def test_up_says_how_to_go_on(state: ClusterState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "up", lambda name, **settings: state)
    said = CliRunner().invoke(app, ["up", "--name", "mine"], catch_exceptions=False).output
    assert str(token_file("mine")).replace("'", "'\"'\"'") in said
    assert 'eval "$(shoal cluster env --name mine)"' in said
    assert "`shoal cluster down --name mine` ends it" in said
