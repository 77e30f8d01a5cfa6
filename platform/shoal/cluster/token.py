"""Whether this process's environment holds the token of the cluster it means. Imports no Ray: said before anything."""

from __future__ import annotations

import os
from pathlib import Path

from shoal.cluster import processes
from shoal.cluster.state import ClusterState, known_clusters, load, token_file
from shoal_core.errors import UserError

__all__ = ["check_environment", "token", "wants_token"]

CURRENT = Path("/tmp/ray/ray_current_cluster")
"""Where Ray notes a cluster that `ray start` made on this machine."""


def token() -> str | None:
    """The token that Ray will show, as it finds it; None: it shows none."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return None
    if held := os.environ.get("RAY_AUTH_TOKEN"):
        return held.strip()
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return file.read_text().strip()
    except OSError:
        return None


def check_environment() -> None:
    """Return if nothing speaks against joining the cluster that the environment means; nobody is asked.

    Raises:
        UserError: it is one of this machine, and the environment holds no token, or not its own.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if processes.MARK in os.environ or (not address and CURRENT.exists()):
        return
    for state in local_clusters():
        if address in ("", "auto", state.gcs_address) and processes.pids_of(state, state.head):
            if token() != token_file(state.name).read_text().strip():
                raise wants_token(state.gcs_address)
            return


def local_clusters() -> list[ClusterState]:
    """Those of this user on this machine, apart from any whose state cannot be read."""
    found = []
    for name in known_clusters():
        try:
            found.append(load(name))
        except UserError:  # the commands on that cluster say so
            continue
    return found


def wants_token(address: str) -> UserError:
    """What is wrong with the environment, by whose cluster it is."""
    for state in local_clusters():
        if not address or state.gcs_address == address:
            named = "" if state.name == "local" else f" --name {state.name}"
            return UserError(f'a cluster is here but wants its token: eval "$(shoal cluster env{named})"')
    return UserError(
        f"the cluster at {address} wants another token",
        "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file that holds its token",
    )
