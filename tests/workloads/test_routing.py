"""Rows of the busiest worker: by the formula, by drawing tokens one by one, and as a run that trains has them."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from shoal_workloads.footprint import footprint
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.parallel.engine import Figures
from shoal_workloads.routing import RoutingConfig, busiest, measured
from tests.support import synthetic

Loads = np.ndarray
"""(micro-batches, samples, E)."""


def model(experts: int, top_k: int) -> ModelConfig:
    return ModelConfig.from_preset("demo", n_experts=experts, top_k=top_k)


def drawn(routing: RoutingConfig, shape: ModelConfig, times: int, samples: int, length: int, seed: int) -> Loads:
    """Every token chooses K experts, none twice, each as often as its share says."""
    random = np.random.default_rng(seed)
    experts, top_k = shape.n_experts, shape.top_k
    shares = random.normal(1.0, routing.lasting, experts).clip(0.05)
    text = np.ones((times, samples, experts))
    if routing.by_text:
        text = random.gamma(routing.by_text**-2, routing.by_text**2, text.shape)
    keys = np.log(shares * text + 1e-30)[:, :, None, :] + random.gumbel(size=(times, samples, length, experts))
    chosen = np.argpartition(-keys, top_k - 1, axis=3)[..., :top_k].reshape(times, samples, -1)
    return np.stack([[np.bincount(one, minlength=experts) for one in micro_batch] for micro_batch in chosen])


def busiest_of(loads: Loads, ep: int) -> np.ndarray:
    """By micro-batch, of the samples of all workers together. loads: (..., samples, E)."""
    rows = loads.sum(axis=-2)
    rows = rows.reshape(*rows.shape[:-1], ep, -1).sum(axis=-1)
    return rows.max(axis=-1) / rows.mean(axis=-1)


def test_where_the_formula_is_exact() -> None:
    shape = model(64, 6)
    assert busiest(RoutingConfig(), shape, 1, 8, 4096) == 1.0
    sure = RoutingConfig(lasting=0.1, by_text=0.0)  # without chance: what lasts alone
    factors = [busiest(sure, shape, ep, 8, 10**12) - 1 for ep in (2, 4, 8, 16, 32, 64)]
    assert factors == sorted(factors)
    assert busiest(RoutingConfig(lasting=9.0), shape, 4, 4, 4096) == 4  # all tokens, all their choices
    assert busiest(RoutingConfig(lasting=99.0), shape, 64, 64, 4096) == pytest.approx(64 / 6)  # of six, one
    # of a worker's load the deviation, for any that chance makes: E - h of E - 1, by counting
    loads = drawn(RoutingConfig(lasting=0.0, by_text=0.0), model(16, 4), 4000, 1, 16, 0)
    rows = loads.sum(axis=1).reshape(4000, 4, 4).sum(axis=2) / (16 * 4 / 4)
    expected = sqrt((16 / 4 - 1) / 16 * (16 - 4) / (4 * 15))
    assert rows.std() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("experts", "top_k", "ep", "samples", "length", "lasting", "by_text", "off"),
    [
        (64, 6, 8, 8, 64, 0.0, 0.0, 0.05),  # chance alone
        (64, 6, 64, 8, 64, 0.0, 0.0, 0.05),
        (64, 6, 8, 8, 64, 0.05, 0.5, 0.12),
        (128, 8, 32, 32, 16, 0.05, 1.0, 0.15),
    ],
)
def test_the_busiest_is_what_drawing_gives(
    experts: int, top_k: int, ep: int, samples: int, length: int, lasting: float, by_text: float, off: float
) -> None:
    routing, shape = RoutingConfig(lasting=lasting, by_text=by_text), model(experts, top_k)
    found = np.quantile(busiest_of(drawn(routing, shape, 300, samples, length, 1), ep), routing.quantile)
    assert busiest(routing, shape, ep, samples, length) - 1 == pytest.approx(found - 1, rel=off)


@pytest.mark.parametrize(("lasting", "by_text"), [(0.0, 0.0), (0.0, 0.6), (0.15, 0.3)])
def test_what_a_run_tells_of_large_batches_holds_for_small_ones(lasting: float, by_text: float) -> None:
    """From MaxVio over 64 samples, four micro-batches of 16 of which eight workers share: enough, and not far more."""
    true, shape, layers = RoutingConfig(lasting=lasting, by_text=by_text), model(32, 4), 8
    loads = [drawn(true, shape, 40, 64, 24, seed) for seed in range(layers)]
    whole = np.stack([one.sum(axis=1) for one in loads], axis=1)  # (steps, layers, E)
    vio = whole.max(axis=2) / whole.mean(axis=2) - 1
    routing = measured(vio.tolist(), shape, 64, 24, 0.99)
    small = np.stack([one.reshape(40, 4, 16, 32) for one in loads])
    found = np.quantile(busiest_of(small, 8), 0.99) - 1
    said = busiest(routing, shape, 8, 16, 24) - 1
    assert 0.93 * found < said < 1.6 * found, (said, found, routing)


@pytest.mark.long
def test_a_real_runs_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that trains: its MaxVio by step and router, as a run records it, against the loads of its micro-batches,
    had two or four workers shared them."""
    seen: list[np.ndarray] = []
    count = Figures.count

    def note(self: Figures, losses: object) -> None:
        seen.append(self.loads.numpy().copy())  # of the step so far, without what is not added yet
        count(self, losses)  # type: ignore[arg-type]

    steps, samples = 24, 16
    job = synthetic.tiny(batch={"global_batch": samples, "micro_batch": 1}, schedule={"gamma": 0.02})
    replica = synthetic.build(job)
    monkeypatch.setattr(Figures, "count", note)
    metrics = [synthetic.run_step(replica, step) for step in range(steps)]
    routers = len(replica._biases)
    vio = [[one[f"max_violation.{i}"] for i in range(routers)] for one in metrics]
    sums = np.stack(seen).reshape(steps, samples, routers, -1)  # loads are added before `count`
    loads = np.diff(sums, axis=1, prepend=0.0)
    tokens = [job.data.seq_len, job.data.seq_len, job.data.seq_len - 1]  # an MTP module has one less
    assert (loads.sum(axis=3) == np.array(tokens) * job.model.top_k).all()
    totals = sums[:, -1]
    assert totals.max(axis=2) / totals.mean(axis=2) - 1 == pytest.approx(np.array(vio), rel=1e-5)
    routing = measured(vio, job.model, samples, job.data.seq_len, 0.99)
    for ep in (2, 4):
        together = loads.transpose(0, 2, 1, 3).reshape(steps, routers, samples // ep, ep, -1)
        found = np.quantile(busiest_of(together, ep), 0.99)
        said = busiest(routing, job.model, ep, ep, job.data.seq_len)
        assert 0.95 * found < said < 1.5 * found


def test_memory_follows_the_quantile() -> None:
    """Of rows and nothing that is held all the time."""
    job = synthetic.tiny(parallel={"ep": 4}, batch={"global_batch": 64, "micro_batch": 4}, device="cuda")
    plain, sure = (
        footprint(job.model_copy(update={"routing": one}), 4)
        for one in (RoutingConfig(quantile=0.9), RoutingConfig(quantile=0.999))
    )
    more = {name for name, size in sure.parts.items() if size > plain.parts[name]}
    assert "activations: rows" in more
    assert not {"parameters", "gradients", "master parameters", "moments", "activations: attention"} & more
