"""Joining a cluster: one that is not there, or wants a token, is said before Ray is asked."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from shoal.cluster import processes, token
from shoal.cluster.state import ClusterState, NodeState, save, state_dir, token_file
from shoal.on_ray import join
from shoal_core.errors import UserError

TOKEN = "t0ken"


class Guarded(grpc.GenericRpcHandler):
    """Answers whoever shows the token, as Ray's control store does."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if ("authorization", f"Bearer {TOKEN}") not in details.invocation_metadata:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "token")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer) if details.method == join.ASK else None


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, [Guarded()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None)


@pytest.fixture(autouse=True)
def _no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_the_right_token_is_let_in(address: str) -> None:
    join.check(address, TOKEN)


@pytest.mark.parametrize("token", [None, "wrong"])
def test_another_is_told_what_to_set(address: str, token: str | None) -> None:
    with pytest.raises(UserError, match=r"wants another token\n  remedy: set RAY_AUTH_MODE=token"):
        join.check(address, token)


def test_of_a_cluster_of_this_machine_it_is_told_which_command(address: str) -> None:
    port = int(address.rpartition(":")[2])
    head = NodeState("head", "127.0.0.1", 0, 0)
    state_dir("mine").mkdir(parents=True)
    save(ClusterState("mine", "id", "process", "up", port, 8265, 1, 1, "/tmp/x", nodes=(head,)))
    with pytest.raises(UserError) as refused:
        join.check(address, None)
    assert refused.value.problem == 'a cluster is here but wants its token: eval "$(shoal cluster env --name mine)"'


@pytest.mark.parametrize(
    ("address", "mode", "held"), [("", "", ""), ("10.0.0.1:6379", "token", "another"), ("auto", "", "")]
)
def test_a_shell_without_the_token_is_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, mode: str, held: str
) -> None:
    state_dir("local").mkdir(parents=True)
    token_file("local").write_text(TOKEN)
    save(
        ClusterState(
            "local", "id", "netns", "up", 6379, 1, 1, 1, "/tmp/x", nodes=(NodeState("head", "10.0.0.1", 0, 0),)
        )
    )
    alive: list[int] = []
    monkeypatch.setattr(processes, "pids_of", lambda state, node: alive)
    monkeypatch.setattr(token, "CURRENT", tmp_path / "no-such-file")
    monkeypatch.delenv(processes.MARK, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN", held)
    token.check_environment()  # a cluster that is dead
    alive.append(1)
    with pytest.raises(UserError) as refused:
        token.check_environment()
    assert refused.value.problem == 'a cluster is here but wants its token: eval "$(shoal cluster env)"'
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    token.check_environment()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    token.check_environment()  # another cluster's, as far as one can see from here


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(UserError, match=f"there is no Ray cluster at {free}"):
        join.check(free, None)


def test_the_token_is_found_where_ray_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert token.token() is None
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert token.token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    assert token.token() == "home"
    (tmp_path / "file").write_text("file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert token.token() == "file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "said")
    assert token.token() == "said"
