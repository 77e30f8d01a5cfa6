"""What `shoal cluster` says, without a cluster."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli.cluster import app
from shoal.cluster import local
from shoal.cluster.assemble import SOCKET_BYTES, check_room_for_sockets, claim
from shoal.cluster.state import ClusterState, NodeState, known_clusters, save, state_dir, token_file
from shoal_core.errors import UserError


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


def test_a_temporary_folder_whose_path_is_too_long_for_rays_sockets_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself would only say that the head did not start, again and again. The folder is removed."""
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with pytest.raises(UserError) as error:
        claim("mine", "process", 8265, 200)
    assert f"the temporary folder {folder} has too long a path" in error.value.problem
    assert str(SOCKET_BYTES) in error.value.problem
    assert "TMPDIR" in error.value.remedy
    assert (list(folder.iterdir()), known_clusters()) == ([], [])


def test_as_long_a_path_as_the_kernel_takes_is_none_too_long() -> None:
    """Of a byte more, in any letter, or in the number of the process, it says by how much."""
    rest = "/head/session_2026-01-31_23-59-59_999999_12345/sockets/dash_MetricsHead"
    fits = "/" + "é" * ((SOCKET_BYTES - len(rest) - 1) // 2) + "x" * ((SOCKET_BYTES - len(rest) - 1) % 2)
    assert len((fits + rest).encode()) == SOCKET_BYTES
    check_room_for_sockets(fits, 12345)
    for folder, pid in ((fits + "x", 12345), (fits, 123456)):
        with pytest.raises(UserError, match="paths of 108 bytes, and the kernel takes 107") as error:
            check_room_for_sockets(folder, pid)
        assert "1 bytes shorter" in error.value.remedy
