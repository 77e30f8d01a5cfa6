"""Joining a Ray cluster as a driver, and leaving it. That there is none, or it wants a token, is said in seconds."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from typing import Any

import grpc
import ray
from ray._private import services

from shoal.cluster.token import check_environment, token, wants_token
from shoal.on_ray import NAMESPACE
from shoal_core.errors import UserError
from shoal_core.passing import TEMP_DIR

__all__ = ["connect", "connect_or_start", "dashboard", "leave"]

CONNECT_S, ANSWER_S = 5.0, 10.0
LEAVE_S = 1.5
"""Seconds for Ray to part from its cluster."""
ASK = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""What Ray's client asks first, and for minutes if it is refused."""
NONE = "start one (`shoal cluster up`) and submit: `ray job submit -- shoal train job.yaml`"


def connect() -> None:
    """Join the cluster that this process belongs to or that RAY_ADDRESS names, unless that is done.

    Raises:
        UserError: there is none, it does not answer, or it wants another token.
    """
    if ray.is_initialized():
        return
    try:
        address = services.canonicalize_bootstrap_address_or_die("auto", os.environ.get(TEMP_DIR))
        check(address, token())
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # a cluster on one machine: Ray would take the head for this driver's node
            _temp_dir=os.environ.get(TEMP_DIR),
        )
    except ray.exceptions.AuthenticationError as error:
        raise wants_token(os.environ.get("RAY_ADDRESS", "")) from error
    except (ConnectionError, ValueError) as error:
        raise UserError("there is no Ray cluster to train on", NONE) from error


def connect_or_start(slot_resource: str) -> None:
    """Join the cluster that this process belongs to, that RAY_ADDRESS names, or that `ray start` began on this machine;
    where there is none, or RAY_ADDRESS is `local`, start Ray here, with a slot a core. It ends with this process.

    Raises:
        UserError: the cluster does not answer, or wants another token; or there is none, and no GPU here.
    """
    if ray.is_initialized():
        return
    check_environment()
    named: Any = None  # by the environment, or noted by `ray start`; "auto" would be any that runs here
    if services.canonicalize_bootstrap_address(named, os.environ.get(TEMP_DIR)) is not None:
        connect()
        return
    cores = os.cpu_count() or 1
    slots = {} if slot_resource in ("CPU", "GPU") else {slot_resource: float(cores)}
    ray.init(
        address="local",
        num_cpus=cores,
        resources=slots,
        namespace=NAMESPACE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _system_config={"worker_niceness": 0},  # Ray's 15 would have them wait for whatever else runs here
    )


def dashboard() -> str:
    """The address of the dashboard of the cluster that is joined; empty if it has none."""
    return str(ray._private.worker.get_dashboard_url() or "")


def leave(code: int) -> None:
    """Let go of the cluster. Where Ray does not come back from that (a cluster that is gone), the process ends here."""
    going = threading.Thread(target=ray.shutdown, daemon=True)
    going.start()
    going.join(LEAVE_S)
    if going.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def check(address: str, shown: str | None) -> None:
    """Ask the cluster at `address` (host:port) its name.

    Raises:
        UserError: nothing listens there, or it wants another token. A cluster that is slow to answer is waited for by
            whoever joins it.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise UserError(f"there is no Ray cluster at {address} ({error})", NONE) from error
    metadata = [("authorization", f"Bearer {shown}")] if shown else []
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(ASK)(b"", timeout=ANSWER_S, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise wants_token(address) from error
