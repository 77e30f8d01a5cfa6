"""Whether the exchange of rows stays hidden as model and cluster grow together (report, section 3.2.2: "as long as we
maintain a constant computation-to-communication ratio")."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from shoal_core.mesh import Mesh
from shoal_workloads.config import PretrainConfig
from shoal_workloads.estimate.layer import Layers, total
from shoal_workloads.estimate.step import Cluster
from shoal_workloads.params import count_parameters

__all__ = ["Scaled", "scaled"]

Way = Literal["more experts", "finer experts"]
TIMES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Scaled:
    """A layer of experts whose group of workers is `times` as large. `flat`, `hierarchical`: seconds of the exchange
    over those that the same worker computes, of a forward and a backward together: below 1 it can be hidden.
    `copies_flat`, `copies`: of a token's row to other nodes, at most."""

    way: Way
    times: int
    experts: int
    top_k: int
    d_expert: int
    nodes: int
    parameters: int
    flat: float
    hierarchical: float
    copies_flat: float
    copies: float


def scaled(config: PretrainConfig, cluster: Cluster, ep: int) -> Iterator[Scaled]:
    """The layer of `config` with `ep` workers to share its experts, then larger, in two ways: so many times the experts
    and workers, each worker holding as many as before; and besides so many times finer, each token going to so many
    more of them. Both compute the same for a token. A group of node-limited routing is a node, as in the report."""
    for way in ("more experts", "finer experts"):
        for times in TIMES:
            if found := one(config, cluster, ep, way, times):
                yield found


def one(config: PretrainConfig, cluster: Cluster, ep: int, way: Way, times: int) -> Scaled | None:
    """None: experts cannot be cut so fine."""
    model = config.model
    finer = times if way == "finer experts" else 1
    if model.d_expert % finer or (config.precision == "fp8" and model.d_expert // finer % 128):
        return None
    workers = ep * times
    nodes = -(-workers // cluster.slots)
    top_k = model.top_k * finer
    changes: dict[str, Any] = {
        "n_experts": model.n_experts * times,
        "top_k": top_k,
        "d_expert": model.d_expert // finer,
        "n_shared": model.n_shared * finer,
        "n_groups": nodes if model.n_groups > 1 else 1,
    }
    larger = config.model_copy(update={"model": model.model_copy(update=changes)})
    ratios = {}
    for kind in ("flat", "hierarchical"):
        parallel = config.parallel.model_copy(update={"pp": 1, "ep": workers, "dispatch": kind})
        layers = Layers(
            larger.model_copy(update={"parallel": parallel}), Mesh(ep=workers), cluster.hardware, cluster.slots
        )
        passes = [layers.forward(dense=False), layers.input(dense=False), layers.weight(dense=False)]
        computed = sum(total(each, but="exchange") for each in passes)
        ratios[kind] = sum(each.get("exchange", 0.0) for each in passes) / computed
    away = 1 - 1 / nodes
    limited = min(top_k, nodes, model.topk_groups if model.n_groups > 1 else nodes)
    return Scaled(
        way, times, model.n_experts * times, top_k, model.d_expert // finer, nodes,
        count_parameters(larger.model).total, ratios["flat"], ratios["hierarchical"], top_k * away, limited * away,
    )  # fmt: skip
