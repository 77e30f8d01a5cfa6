"""A Ray cluster on this machine with Ray's own autoscaler, whose cloud is `tests.support.provider`."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shoal.cluster.launch import HEALTH_CHECKS, LOOPBACK_ONLY
from shoal_core.passing import TEMP_DIR

__all__ = ["Autoscaled", "autoscaled"]

ROOT = Path(__file__).parents[2]
HEAD = "f" * 51 + "00000"
BEGUN = 240.0
"""Seconds for the head to be up, on a machine under load."""


@dataclass(frozen=True)
class Autoscaled:
    """`manners`: the folder by which the cloud is told how to behave; `environment`: of a driver."""

    manners: Path
    environment: Mapping[str, str]

    def train(self, file: Path, *words: str) -> subprocess.Popen[str]:
        """`shoal train FILE ...`, on the head."""
        argv = [str(Path(sys.executable).parent / "shoal"), "train", str(file), *words]
        both = subprocess.PIPE, subprocess.STDOUT
        return subprocess.Popen(argv, env=dict(self.environment), text=True, stdout=both[0], stderr=both[1])

    def behave(self, *manners: str) -> None:
        """From now on the cloud has these manners alone, of `mute` and `frail`."""
        for manner in ("mute", "frail"):
            (self.manners / manner).unlink(missing_ok=True)
        for manner in manners:
            (self.manners / manner).touch()

    def kill(self, machine: str) -> None:
        """A machine dies, soon."""
        (self.manners / f"kill-{machine}").touch()

    def waiting(self) -> list[str]:
        """Names of the placement groups that wait for a node, or hold one."""
        said = self.script(
            "for one in ray.util.placement_group_table().values(): print('group', one['name'], one['state'])"
        )
        lines = [line.split() for line in said.splitlines() if line.startswith("group ")]
        return [name for _, name, state in lines if state != "REMOVED"]

    def script(self, code: str) -> str:
        """What a driver says that carries out `code`."""
        joined = "import ray; ray.init(namespace='shoal', log_to_driver=False, logging_level='ERROR')"
        argv = [sys.executable, "-c", f"{joined}\n{code}"]
        env = dict(self.environment)
        return subprocess.run(argv, env=env, stdout=subprocess.PIPE, text=True, timeout=300, check=True).stdout

    @property
    def made(self) -> list[str]:
        """Machines that ever came."""
        made = self.manners / "made"
        return made.read_text().split() if made.exists() else []


@contextlib.contextmanager
def autoscaled(slots: Mapping[int, int]) -> Iterator[Autoscaled]:
    """One whose cloud has machines of so many slots each (and so many of that kind); it begins with none."""
    folder = Path(tempfile.mkdtemp(prefix="sa", dir="/tmp"))  # short: Ray's sockets lie in it
    (folder / "manners").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_") and name != "TMPDIR"},
        **HEALTH_CHECKS,
        **LOOPBACK_ONLY,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # beside other tests nothing would ever start
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "GLOO_SOCKET_IFNAME": "lo",
        TEMP_DIR: str(folder / "ray"),
    }
    (folder / "token").write_text(secrets.token_hex(32))
    (folder / "cluster.json").write_text(json.dumps(settings(folder, port, slots)))
    own = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    argv = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    argv += ["--node-ip-address=127.0.0.1", "--num-cpus=0", "--include-dashboard=false", "--disable-usage-stats"]
    argv += [f"--temp-dir={folder / 'ray'}", "--object-store-memory=80000000"]
    argv += [f"--autoscaling-config={folder / 'cluster.json'}"]
    log = (folder / "log").open("w")
    head = subprocess.Popen(argv, env={**environment, **own}, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + BEGUN
        while "Ray runtime started" not in (folder / "log").read_text():
            assert head.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.2)
        yield Autoscaled(folder / "manners", environment)
    finally:
        for pid in processes(str(folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait(60)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def settings(folder: Path, port: int, slots: Mapping[int, int]) -> dict[str, object]:
    """The cluster's configuration, as Ray's autoscaler takes it."""
    kind = {"node_config": {}, "min_workers": 0}
    machines = {
        f"of{n}": {**kind, "resources": {"CPU": n, "slot": n}, "max_workers": most} for n, most in slots.items()
    }
    lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "test",
        "max_workers": sum(slots.values()),
        "idle_timeout_minutes": 2,
        "provider": {
            "type": "external",
            "module": "tests.support.provider.Cloud",
            "manners": str(folder / "manners"),
            "gcs_address": f"127.0.0.1:{port}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
        },
        "available_node_types": {**machines, "ray.head.default": {**kind, "resources": {}, "max_workers": 0}},
        "head_node_type": "ray.head.default",
        **{name: {} for name in ("auth", "head_node", "worker_nodes", "file_mounts")},
        **{f"{name}_commands": [] for name in lists},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }


def processes(word: str) -> list[int]:
    """Living processes with `word` in their command line, and all that come of them; never this one."""
    parents: dict[int, int] = {}
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                pid = int(entry.name)
                parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if word in (entry / "cmdline").read_text(errors="replace"):
                    found.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {os.getpid()})
