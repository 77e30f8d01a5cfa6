"""A calibration: what is counted, what is fitted, what is kept, and what an estimate makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shoal_core.errors import UserError
from shoal_core.mesh import Mesh
from shoal_workloads.config import PretrainConfig
from shoal_workloads.estimate import Cluster, amounts, estimate
from shoal_workloads.estimate import calibrate_cpu as cpu
from shoal_workloads.estimate import calibrate_cuda as cuda
from shoal_workloads.estimate.amounts import Batch
from shoal_workloads.estimate.calibrate import calibrate, check_table, written
from shoal_workloads.estimate.calibrate_cpu import LAYERS, NO_DEVICE
from shoal_workloads.estimate.calibrate_messages import update
from shoal_workloads.estimate.fitting import fitted
from shoal_workloads.estimate.hardware import (
    Calibration,
    Hardware,
    Learned,
    calibrated,
    hardware,
    known_hardware,
    own_file,
)
from shoal_workloads.estimate.layer import Product, total
from shoal_workloads.estimate.measured import CpuLayers, layers_of, shared_cores
from shoal_workloads.estimate.probes import probe_config
from shoal_workloads.model.deepseek import Block
from shoal_workloads.model.moe import MoE

ONE = {"each": 1.0}
PASSES = {name: {"each": 1e-3, "byte": 1e-9} for name in ("forward", "input", "weight", "backward")}
COMPUTING: dict[str, Any] = {
    "product": {"each": 1e-6, "flop": 1e-11, "byte": 2e-11},
    "core": {"forward": {"block": 1e-4}, "backward": {"block": 3e-4}},
    "dense": PASSES,
    "moe": PASSES,
    "ends": {"each": 5e-4},
}


def entry(**changes: Any) -> Hardware:
    values = {"measured": "2026-11-30", "versions": {}, "spread": 0.01, "busy": 0.0} | changes
    calibration = Calibration.model_validate(values)
    return NO_DEVICE.model_copy(update={"device": "A CPU", "memory_gb": 8.0, "calibration": calibration})


def job(precision: str = "fp32", **model: Any) -> PretrainConfig:
    return probe_config({**LAYERS[2][0], **model}, 160, precision, "cpu", samples=2)


def test_costs_come_out_of_what_they_made() -> None:
    counted = [{"each": 1.0, "flop": float(n * n), "byte": float(n)} for n in (1, 10, 50, 300)]
    costs = {"each": 1e-3, "flop": 2e-6, "byte": 0.0}
    measured = [amounts.seconds(costs, one) for one in counted]
    assert fitted(counted, measured) == pytest.approx(costs, abs=1e-12)
    rest = [one + 0.25 for one in measured]
    assert fitted(counted, rest, [0.25] * 4) == pytest.approx(costs, abs=1e-9)
    falling = [5.0 - one["byte"] / 100 for one in counted]  # no cost is below zero
    assert fitted([{"each": 1.0, "byte": one["byte"]} for one in counted], falling)["byte"] == 0.0


def test_what_a_core_is_counted_by() -> None:
    model = job(n_heads=4, d_head=32, d_rope=16, d_v=32).model
    found = amounts.core(model, Batch(2, 300, 4))
    scores = 128 * 128 + 128 * 256 + 44 * 300
    assert found["block"] == 2 * 3
    assert found["flop"] == 2 * 2 * 4 * scores * (48 + 32)
    assert found["beyond"] == 2 * (4 * 4 * 128 * 256 - amounts.CACHE) * (amounts.CACHE < 4 * 4 * 128 * 256)
    assert amounts.core(model, Batch(1, 2048, 4))["beyond"] > 0


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("shape", [LAYERS[0][0], LAYERS[1][0]])
def test_the_weights_that_a_layer_is_counted_by_are_its_own(shape: dict[str, Any], dense: bool) -> None:
    model = probe_config(shape, 16, "fp32", "cpu").model
    with torch.device("meta"):
        block = Block(model, None, dense=dense)
    own = sum(p.numel() for p in block.parameters() if p.dim() > 1)
    own -= block.ffn.router.weight.numel() if isinstance(block.ffn, MoE) else 0
    assert amounts.layer(model, Batch(1, 16, 4), model.n_experts, dense=dense)["weight"] == own


def test_experts_multiply_block_by_block() -> None:
    assert amounts.product(Product(700, 8, 4, "bf16"), 4)["each"] == 1
    assert amounts.product(Product(700, 8, 4, "bf16", times=3), 4)["each"] == 6


def test_a_cpu_takes_what_was_fitted() -> None:
    device, config = entry(computing={"fp32": COMPUTING}), job()
    layers = layers_of(config, Mesh(), device, 2)
    assert isinstance(layers, CpuLayers)
    for dense in (True, False):
        found = layers.forward(dense=dense)
        products = [amounts.product(one, 4) for one in layers.multiplied(dense)]
        assert found["products"] == pytest.approx(sum(amounts.seconds(COMPUTING["product"], one) for one in products))
        assert found["attention"] == pytest.approx(4 * 1e-4)  # two samples of two blocks
        assert found["host"] == pytest.approx(1e-3)
        assert found["element-wise"] == pytest.approx(
            1e-9 * amounts.layer(config.model, Batch(2, 160, 4), 8, dense=dense)["byte"]
        )
    whole = estimate(config.model_copy(update={"device": "cpu"}), Cluster(1, 2, "mine", device), 1)
    parts = [layers.forward(dense=True), layers.backward(dense=True), layers.head()]
    computed = {name: seconds for name, seconds in whole.step.items() if name not in ("optimizer", "sum across cells")}
    assert sum(computed.values()) == pytest.approx(sum(map(total, parts)))
    with pytest.raises(UserError, match="was measured in fp32, not in bf16"):
        layers_of(job("bf16"), Mesh(), device, 2)


def test_workers_that_are_more_than_the_cores_take_turns() -> None:
    calibration = entry(cores=2, crowded=1.2).calibration
    assert calibration is not None
    assert [shared_cores(calibration, workers) for workers in (1, 2, 4)] == pytest.approx([1.0, 1.2, 2.4])


def test_python_counts_on_a_gpu_where_it_takes_longer_than_the_device() -> None:
    host = {"dense": {"forward": 1.0, "input": 0.0}, "moe": {}}
    known = hardware("H100")
    values = {"measured": "2026-11-30", "versions": {}, "spread": 0.0, "busy": 0.0, "host": host}
    gpu = known.model_copy(update={"calibration": Calibration.model_validate(values)})
    config = job("bf16").model_copy(update={"device": "cuda"})
    plain, hosted = layers_of(config, Mesh(), known, 8), layers_of(config, Mesh(), gpu, 8)
    assert total(hosted.forward(dense=True)) == pytest.approx(1.0)
    assert total(hosted.input(dense=True)) == pytest.approx(total(plain.input(dense=True)))
    assert gpu.kind == "cuda"


# ---- the user's table


def test_an_entry_is_kept_among_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config" / "hardware.yaml"
    monkeypatch.setenv("SHOAL_HARDWARE", str(path))
    assert own_file() == path
    written("first", entry(), path)
    path.write_text("# mine\n" + path.read_text() + "# of the second\n")
    written("second", entry(cores=4).model_copy(update={"device": "Another"}), path)
    written("first", entry(cores=8), path)
    table = known_hardware()
    assert {"first", "second", "H100"} <= set(table)
    assert table["first"] == entry(cores=8)
    assert path.read_text().startswith("# mine\n")
    assert "# of the second" in path.read_text()
    found = calibrated("Another")
    assert found is not None
    assert found[0] == "second"
    assert calibrated("Third") is None
    assert [one.name for one in path.parent.iterdir()] == ["hardware.yaml"]


def test_what_is_no_table_or_no_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hardware.yaml"
    with pytest.raises(UserError, match="can be no name"):
        check_table("two words", path)
    path.write_text("first: {tflops: 3}\n")
    with pytest.raises(UserError, match=r"hardware\.yaml: first\.tflops"):
        written("second", entry(), path)
    assert path.read_text() == "first: {tflops: 3}\n"
    with pytest.raises(UserError, match="cannot be written"):
        check_table("second", path / "below")


# ---- what is measured


def test_a_calibration_is_an_entry_that_estimates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, some in (("SHAPES", slice(2, None, 4)), ("CORES", slice(3)), ("LAYERS", slice(3)), ("ENDS", slice(2))):
        monkeypatch.setattr(cpu, name, getattr(cpu, name)[some])
    monkeypatch.setattr(cpu, "update", lambda: update(count=2, side=64))
    said = list[str]()
    found = calibrate("cpu", workers=1, seconds=0.0, precisions=("fp32",), tell=said.append)
    written("here", found, tmp_path / "hardware.yaml")
    monkeypatch.setenv("SHOAL_HARDWARE", str(tmp_path / "hardware.yaml"))
    device = hardware("here")
    assert device.kind == "cpu"
    assert device.calibration is not None
    assert device.calibration.computing["fp32"].product["flop"] > 0
    assert device.calibration.update > 0
    assert device.calibration.messages is None
    assert "fp32" in said[0]
    small, large = (estimate(job(n_layers=n, n_dense=n), Cluster(1, 1, "here", device), 1) for n in (1, 3))
    assert 0 < small.seconds < large.seconds < 3 * small.seconds


def test_the_parts_of_a_gpus_calibration_run() -> None:
    rate, spread = cuda.products([(16, 16, 16), (32, 64, 16)], "cpu", 0.0)
    assert rate > 0 <= spread
    assert all(one >= 0 for one in cuda.attention(32, 2, "cpu", 0.0, width=16))
    assert cuda.memory(1 << 12, "cpu", 0.0)[0] > 0
    host = cuda.host("cpu", 0.0)
    assert set(host) == {"dense", "moe"}
    assert set(host["moe"]) == {"forward", "backward", "input", "weight"}


def test_a_gpu_is_measured_beside_its_shipped_entry_not_what_runs_have_taught_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_HARDWARE", str(tmp_path / "hardware.yaml"))
    (tmp_path / "hardware.yaml").touch()
    known = hardware("H100")
    own = known.model_copy(update={"learned": Learned(step=2.0, runs=("a",), of="2026-11-30")})
    written("H100", own, own_file())
    assert hardware("H100").learned is not None
    assert cuda.shipped_of("NVIDIA H100 80GB HBM3") == known
    assert cuda.shipped_of("NVIDIA GeForce RTX 4090") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_not_measured() -> None:
    with pytest.raises(UserError, match="torch sees no GPU"):
        calibrate("cuda")
