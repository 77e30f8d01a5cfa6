"""What errors of torch, CUDA and NCCL mean; what NCCL is told; what is decided when a device fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from shoal.decisions.actions import End, Journal, Stop
from shoal.decisions.events import Lost
from shoal.protocol.said import Failed
from shoal.timeouts import Timeouts
from shoal.worker.environment import set_up, variables
from shoal.worker.faults import Fault, meaning, memory_figures
from tests.support.decisions import Run
from tests.support.lab import lab

OUT = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which 12.50 MiB is "
    "free. Of the allocated memory 70.02 GiB is allocated by PyTorch, and 5.10 GiB is reserved by PyTorch but "
    "unallocated."
)
NCCL = "NCCL error in: /build/ProcessGroupNCCL.cpp:77, "
SAID = [
    (torch.OutOfMemoryError(OUT), Fault.MEMORY),
    (RuntimeError("CUDA error: out of memory"), Fault.MEMORY),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), Fault.MEMORY),
    (dist.DistBackendError(NCCL + "unhandled cuda error\nCuda failure 2 'out of memory'"), Fault.MEMORY),
    (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), Fault.DEVICE),
    (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), Fault.DEVICE),
    (torch.AcceleratorError("CUDA error: device-side assert triggered"), Fault.DEVICE),
    (RuntimeError("CUDA error: unspecified launch failure"), Fault.DEVICE),
    (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), Fault.DEVICE),
    (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), Fault.DEVICE),
    (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), Fault.DEVICE),
    (RuntimeError("No CUDA GPUs are available"), Fault.DEVICE),
    (dist.DistBackendError(NCCL + "unhandled cuda error\nncclUnhandledCudaError: Call to CUDA failed."), Fault.DEVICE),
    (dist.DistBackendError("watchdog thread: CUDA error: an illegal memory access was encountered"), Fault.DEVICE),
    (RuntimeError("NCCL Error 1: unhandled cuda error"), Fault.DEVICE),
    (RuntimeError("NCCL Error 6: remote process exited or there was a network error"), Fault.PEER),
    (dist.DistBackendError(NCCL + "remote process exited or there was a network error"), Fault.PEER),
    (dist.DistBackendError("NCCL communicator was aborted on rank 3."), Fault.PEER),
    (dist.DistStoreError("the controller is gone"), Fault.PEER),
    (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), Fault.PEER),
    (RuntimeError("Connection reset by peer"), Fault.PEER),
    (dist.DistBackendError(NCCL + "invalid usage\nncclInvalidUsage: This usually reflects a bug"), Fault.CODE),
    (RuntimeError("CUDA error: no kernel image is available for execution on the device"), Fault.CODE),
    (RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasGemmEx`"), Fault.CODE),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), Fault.CODE),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), Fault.CODE),
    (ValueError("injected at accumulate of step 20"), Fault.CODE),
    (IndexError("list index out of range"), Fault.CODE),
]


@pytest.mark.parametrize(("error", "fault"), SAID, ids=[str(error)[-40:] for error, _ in SAID])
def test_what_an_error_means(error: Exception, fault: Fault) -> None:
    assert meaning(error) is fault


def test_the_numbers_of_a_full_memory_are_told_in_one_clause() -> None:
    wanted = "20.00 MiB wanted, of 79.10 GiB, 12.50 MiB free, 70.02 GiB held by tensors, 5.10 GiB reserved beside"
    assert memory_figures(OUT) == wanted
    assert memory_figures("CUDA error: out of memory") == "CUDA error: out of memory"


def test_nccl_is_told_to_leave_failures_to_shoal(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in variables(Timeouts(20.0), "eth1"):
        monkeypatch.setenv(variable.name, "the user's")
    set_up(Timeouts(20.0), "eth1")
    assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
    assert os.environ["TORCH_NCCL_NONBLOCKING_TIMEOUT"] == "5"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "the user's"
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    set_up(Timeouts(20.0), "eth1")
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=eth1"


def test_only_a_run_that_promises_its_bits_has_the_cpus_products_fixed() -> None:
    fixed, free = (variables(Timeouts(20.0), None, exact=exact) for exact in (True, False))
    assert {variable.name for variable in fixed} - {variable.name for variable in free} == {"MKL_CBWR"}


# ---- what is decided


def running() -> Run:
    run = Run()
    run.start()
    return run


def device(run: Run, worker: str, what: Any, message: str = "it broke") -> list[Any]:
    return run.feed(Failed(worker, run.state.generation, what, message))


def test_a_failed_device_is_told_and_its_workers_death_is_healed_as_any() -> None:
    run = running()
    (told,) = device(run, "w00", "device")
    assert isinstance(told, Journal)
    assert (told.kind, told.fields["what"], told.fields["message"]) == ("device_failed", "device", "it broke")
    node = told.fields["node"]
    assert [action for action in run.feed(Lost("w00", "closed")) if isinstance(action, Stop)]
    assert run.state.tally.strikes[node] == (run.state.committed,)
    assert run.state.halt is None


def test_a_memory_that_is_full_on_one_node_is_the_nodes_and_on_two_the_jobs() -> None:
    run = running()
    nodes = {worker: run.state.workers[worker].node for worker in ("w00", "w10")}
    assert len(set(nodes.values())) == 2
    device(run, "w00", "memory", "20 GiB wanted, of 79 GiB")
    device(run, "w00", "memory", "21 GiB wanted, of 79 GiB")  # the same node again: no more is known than before
    assert run.state.halt is None
    device(run, "w10", "memory", "22 GiB wanted, of 79 GiB")
    assert run.state.halt is not None
    reason = run.state.halt.reason
    assert f"step {run.state.committed} does not fit" in reason
    assert "on 2 nodes" in reason
    assert all(said in reason for said in (*nodes.values(), "21 GiB wanted", "22 GiB wanted", "smaller micro-batches"))


def test_a_memory_that_is_full_at_another_step_is_counted_anew() -> None:
    run = running()
    device(run, "w00", "memory")
    run.state.committed += 1
    actions = device(run, "w10", "memory")
    assert run.state.halt is None
    assert not [action for action in actions if isinstance(action, End)]


def test_who_is_no_worker_any_more_is_not_listened_to() -> None:
    run = running()
    assert device(run, "nobody", "memory") == []


# ---- in a run


def test_a_worker_whose_device_fails_ends_itself_and_is_healed(tmp_path: Path) -> None:
    workload = {"path": "tests.support.broken:Overheating", "hurry": str(tmp_path / "hurry"), "global_batch": 12}
    with lab(tmp_path, {f"n{i}": 1 for i in range(4)}, steps=40, cells=2, workload=workload) as one:
        run = one.finished()
        assert (run["status"], run["steps_lost"], run["deaths"]) == ("done", 0, 1), one.story()
        (failed,) = one.events("device_failed")
        assert (failed["step"], failed["what"]) == (20, "device")
        assert "ECC" in failed["message"]
        assert one.events("death")[0]["actor"] == failed["actor"]


def test_a_step_that_fits_into_no_memory_ends_the_run_with_the_numbers(tmp_path: Path) -> None:
    workload = {"path": "tests.support.broken:TooLarge", "hurry": str(tmp_path / "hurry"), "global_batch": 12}
    with lab(tmp_path, {f"n{i}": 1 for i in range(4)}, steps=40, cells=2, workload=workload) as one:
        run = one.finished()
        assert run["status"] == "failed", one.story()
        assert "step 20 does not fit into the devices' memory, on 2 nodes" in run["reason"]
        assert "20.00 GiB wanted" in run["reason"]
