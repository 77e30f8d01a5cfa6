"""Joining a cluster: one that is not there, or wants a token, is said before Ray is asked."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from shoal.cluster import join
from shoal.cluster.state import ClusterState, NodeState, save, state_dir
from shoal.errors import UserError

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


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(UserError, match=f"there is no Ray cluster at {free}"):
        join.check(free, None)


def test_the_token_is_found_where_ray_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert join.token() is None
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert join.token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    assert join.token() == "home"
    (tmp_path / "file").write_text("file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert join.token() == "file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "said")
    assert join.token() == "said"
