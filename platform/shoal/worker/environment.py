"""What a worker's environment tells NCCL, torch's NCCL and the CPU's kernels, set before torch makes a group or
multiplies. Knows no torch.

Shoal alone notices what is stuck, ends it, and forms it again; torch's own handling would end the process instead, or
hand out what an aborted collective left behind.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from shoal.timeouts import Timeouts

__all__ = ["Variable", "set_up", "variables"]


class Variable(NamedTuple):
    """`fixed`: what the user set is not kept, since what Shoal promises depends on it."""

    name: str
    value: str
    why: str
    fixed: bool = True


def set_up(timeouts: Timeouts, interface: str | None, *, exact: bool = False) -> None:
    """Set them for this process, before torch makes a group in it."""
    for variable in variables(timeouts, interface, exact=exact):
        if variable.fixed:
            os.environ[variable.name] = variable.value
        else:
            os.environ.setdefault(variable.name, variable.value)


def variables(timeouts: Timeouts, interface: str | None, *, exact: bool = False) -> list[Variable]:
    """`interface`: the network interface that holds the node's address, if it is known. `exact`: of a run that promises
    its bits."""
    found = [
        Variable("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", "torch neither aborts a collective nor ends the process."),
        Variable("TORCH_NCCL_BLOCKING_WAIT", "0", "No wait for a device blocks where nobody can be told anything."),
        Variable("TORCH_NCCL_ENABLE_MONITORING", "0", "A stuck abort ends the process after `abort`, not by torch."),
        Variable("TORCH_NCCL_RETHROW_CUDA_ERRORS", "0", "The training thread meets a device's error, and tells it."),
        Variable("TORCH_NCCL_DUMP_ON_TIMEOUT", "0", "Nobody waits for a dump while a generation ends."),
        Variable("TORCH_NCCL_PROPAGATE_ERROR", "0", "Who failed is told over the lifeline."),
        Variable("TORCH_NCCL_USE_COMM_NONBLOCKING", "1", "A communicator whose member dies can be given up."),
        Variable("TORCH_NCCL_NONBLOCKING_TIMEOUT", f"{max(1, round(timeouts.build))}", "Of `build`, in seconds."),
    ]
    why = "A device has 8 queues by default: a kernel that waits for a peer must not stand before another's."
    found.append(Variable("CUDA_DEVICE_MAX_CONNECTIONS", "32", why, fixed=False))
    if exact:
        why = "Products on a CPU do not hang on where their operands lie in memory, which `reduce: exact` is built on."
        found.append(Variable("MKL_CBWR", "AUTO", why, fixed=False))
    if interface is not None:
        why = "The interface that holds the node's address; one that you set is kept."
        found.append(Variable("NCCL_SOCKET_IFNAME", f"={interface}", why, fixed=False))
    return found
