"""An S3 of moto's in a process of its own, and the environment in which it is the one there is."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["Url", "account", "s3_server"]

_SERVER = """
import sys, time
from moto.server import DomainDispatcherApplication, ThreadedMotoServer
answer, delay, rate = DomainDispatcherApplication.__call__, float(sys.argv[1]), float(sys.argv[2])
def answer_late(application, request, begin):
    def begin_late(status, headers, *error):
        sent, taken = int(request.get("CONTENT_LENGTH") or 0), int(dict(headers).get("Content-Length") or 0)
        time.sleep(delay + (sent + taken) / rate)
        return begin(status, headers, *error)
    return answer(application, request, begin_late)
DomainDispatcherApplication.__call__ = answer_late
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


class Url(str):
    """Of a server; `pid`: its process."""

    pid: int


@contextlib.contextmanager
def s3_server(delay: float = 0.0, rate: float = math.inf) -> Iterator[Url]:
    """The URL of a server that ends with this, or with this process, however that dies. Each answer takes `delay`
    seconds more than it must, and as many as its bytes take at `rate` bytes a second, which a connection of the real S3
    has as well."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    command = [sys.executable, "-c", _SERVER, str(delay), str(rate)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = Url(process.stdout.readline().strip())
        assert url, "moto's server did not start"
        url.pid = process.pid
        try:
            yield url
        finally:
            process.stdin.close()


def account(patch: pytest.MonkeyPatch, endpoint: str, folder: Path) -> None:
    """Make keys and `endpoint` the only settings of AWS there are. `folder`: where no settings lie."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_CONFIG_FILE", str(folder / "no-config"))
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "no-credentials"))
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
