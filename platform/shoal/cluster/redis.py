"""The cluster's own Redis, on which the head keeps Ray's control store: the head can then die and come back.

It listens on the loopback of the head (of its namespace, in netns mode), asks for a password, writes every change to a
file in the cluster's folder, and is none of the head's processes: it stands for a Redis on another machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time

from shoal.cluster import processes
from shoal.cluster.launch import command_in
from shoal.cluster.state import ClusterState, redis_dir, redis_password
from shoal_core.errors import UserError
from shoal_core.files import replace_file

__all__ = ["check", "remove", "start"]

START_TIMEOUT_S = 60.0
CONFIG = """bind 127.0.0.1
port {port}
dir "{folder}"
requirepass {password}
appendonly yes
save ""
daemonize yes
logfile "{folder}/redis.log"
set-proc-title no
"""


def check() -> None:
    """Raises UserError: Redis is not installed."""
    for program in ("redis-server", "redis-cli"):
        if shutil.which(program) is None:
            raise UserError(
                f"--redis: there is no {program} on this machine", "apt-get install redis-server (Debian, Ubuntu)"
            )


def start(state: ClusterState) -> None:
    """Start the cluster's Redis, with all that a former one wrote, and return when it answers. One that runs is left
    alone. Raises UserError: it does not start."""
    if processes.redis_pids(state):
        return
    check()
    folder = redis_dir(state.name)
    folder.mkdir(mode=0o700, exist_ok=True)
    config = folder / "redis.conf"
    if not config.exists():
        replace_file(folder / "password", secrets.token_hex(32), mode=0o600)
        settings = {"port": state.redis_port, "folder": folder, "password": redis_password(state.name)}
        replace_file(config, CONFIG.format(**settings), mode=0o600)
    server = command_in(state.head, ["redis-server", str(config)])
    done = subprocess.run(server, capture_output=True, text=True, check=False, start_new_session=True)
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(state):
        if done.returncode or time.monotonic() > deadline:
            log = folder / "redis.log"
            tail = (log.read_text(errors="replace") if log.exists() else done.stderr).strip()[-1000:]
            raise UserError(f"cluster {state.name}: Redis did not start\n{tail}", "mend what its log says, try again")
        time.sleep(0.05)


def remove(state: ClusterState) -> None:
    """Kill the cluster's Redis, if it has one, and remove all that it wrote."""
    processes.kill_redis(state)
    shutil.rmtree(redis_dir(state.name), ignore_errors=True)


def answers(state: ClusterState) -> bool:
    """Whether the cluster's Redis has read its file and takes the password."""
    ask = command_in(state.head, ["redis-cli", "-p", str(state.redis_port), "ping"])
    environ = {**os.environ, "REDISCLI_AUTH": redis_password(state.name)}
    return subprocess.run(ask, env=environ, capture_output=True, check=False).stdout.strip() == b"PONG"
