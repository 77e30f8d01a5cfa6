"""The layers of a job on a device that was measured (`hardware.Calibration`): what they take by what was fitted there
instead of by the peaks of a data sheet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoal_core.errors import UserError
from shoal_core.mesh import Mesh
from shoal_workloads.config import PretrainConfig
from shoal_workloads.estimate.amounts import Batch, core, ends, layer, product, seconds
from shoal_workloads.estimate.hardware import Calibration, Computing, Costs, Hardware, Passes
from shoal_workloads.estimate.layer import BF16, FP32, Layers, Product, Seconds, total

__all__ = ["CpuLayers", "HostedLayers", "layers_of"]


def layers_of(config: PretrainConfig, mesh: Mesh, hardware: Hardware, slots: int, cells: int = 1) -> Layers:
    """`slots`: workers of a node, if there are as many in all `cells`.

    Raises:
        UserError: the device was not measured in the job's precision.
    """
    calibration = hardware.calibration
    if calibration is None:
        return Layers(config, mesh, hardware, slots)
    if hardware.kind == "cuda":
        return HostedLayers(config, mesh, hardware, slots, calibration)
    computing = calibration.computing.get(config.precision)
    if computing is None:
        raise UserError(
            f"precision: {hardware.device} was measured in {', '.join(calibration.computing)}, not in "
            f"{config.precision}",
            "shoal plan --calibrate measures all of them",
        )
    factor = shared_cores(calibration, min(slots, cells * mesh.workers))
    return CpuLayers(config, mesh, hardware, slots, computing, factor)


def shared_cores(calibration: Calibration, workers: int) -> float:
    """How many times as long `workers` of a machine compute as one alone: they share its memory, and take turns where
    they are more than its cores."""
    cores = calibration.cores
    beside = min(workers, cores) - 1
    crowded = 1 + (calibration.crowded - 1) * (beside / (cores - 1) if cores > 1 else 0.0)
    return crowded * max(1.0, workers / cores)


class HostedLayers(Layers):
    """Of a GPU: what Python takes for a pass counts where it is more than what the device does meanwhile, as `host`."""

    def __init__(
        self, config: PretrainConfig, mesh: Mesh, hardware: Hardware, slots: int, calibration: Calibration
    ) -> None:
        super().__init__(config, mesh, hardware, slots)
        self._host = calibration.host

    def forward(self, *, dense: bool) -> Seconds:
        return self._with_host(super().forward(dense=dense), "forward", dense)

    def input(self, *, dense: bool) -> Seconds:
        return self._with_host(super().input(dense=dense), "input", dense)

    def weight(self, *, dense: bool) -> Seconds:
        return self._with_host(super().weight(dense=dense), "weight", dense)

    def _with_host(self, parts: Seconds, name: str, dense: bool) -> Seconds:
        host = self._host.get("dense" if dense else "moe", {}).get(name, 0.0)
        return {**parts, "host": max(0.0, host - total(parts))}


class CpuLayers(Layers):
    """`computing`: of the job's precision; `factor`: how many times as long, for who computes beside it."""

    def __init__(
        self,
        config: PretrainConfig,
        mesh: Mesh,
        hardware: Hardware,
        slots: int,
        computing: Computing,
        factor: float = 1.0,
    ) -> None:
        super().__init__(config, mesh, hardware, slots)
        self._computing, self._factor = computing, factor
        width = FP32 if config.precision == "fp32" else BF16
        self._batch = Batch(config.batch.micro_batch, config.data.seq_len, width)
        self._held = config.model.n_experts // mesh.ep

    def forward(self, *, dense: bool) -> Seconds:
        found = self._pass("forward", self.multiplied(dense), self._computing.core.forward, dense)
        return found if dense else {**found, "exchange": self._exchange()}

    def input(self, *, dense: bool) -> Seconds:
        products = [*(one.input() for one in self.multiplied(dense)), *self._again(self.products(dense), dense)]
        return self._back("input", products, dense)

    def weight(self, *, dense: bool) -> Seconds:
        return self._pass("weight", [one.weight() for one in self.multiplied(dense)], {}, dense)

    def backward(self, *, dense: bool) -> Seconds:
        products = [*(one.input() for one in self.multiplied(dense)), *self._again(self.products(dense), dense)]
        return self._back("backward", [*products, *(one.weight() for one in self.multiplied(dense))], dense)

    def head(self, kinds: str = "FIW") -> Seconds:
        model = self._model
        one, times = Product(self.tokens, model.vocab_size, model.d_model, self._type), 1 + model.mtp_depth
        each = {"F": one, "I": one.input(), "W": one.weight()}
        products = times * sum(self._product(each[kind]) for kind in kinds)
        if "F" not in kinds:
            return {"products": products}
        found = self._parts(self._computing.ends, ends(model, self._batch))
        return {"products": products, "host": found["host"], "element-wise": times * found["element-wise"]}

    def beside(self, passes: int) -> float:
        """Nothing: the same core carries rows."""
        return 0.0

    # ---- how long they take

    def multiplied(self, dense: bool) -> list[Product]:
        """The router's among them."""
        model = self._model
        router = [] if dense else [Product(self.tokens, model.n_experts, model.d_model, self._type)]
        return [*self.products(dense), *router]

    def _pass(self, name: str, products: Iterable[Product], attention: Costs, dense: bool) -> Seconds:
        passes: Passes = self._computing.dense if dense else self._computing.moe
        costs: Costs = getattr(passes, name)
        return {
            "products": sum(map(self._product, products)),
            "attention": self._factor * seconds(attention, core(self._model, self._batch)),
            **self._parts(costs, layer(self._model, self._batch, self._held, dense=dense)),
        }

    def _back(self, name: str, products: Iterable[Product], dense: bool) -> Seconds:
        found = self._pass(name, products, self._computing.core.backward, dense)
        if dense:
            return found
        times = 1.5 if self._recompute == "dispatch" else 1.0
        return {**found, "exchange": times * self._exchange()}

    def _parts(self, costs: Costs, amounts: Mapping[str, float]) -> dict[str, float]:
        host = {name: amount for name, amount in amounts.items() if name in ("each", "expert")}
        moved = {name: amount for name, amount in amounts.items() if name not in host}
        return {
            "host": self._factor * seconds(costs, host),
            "element-wise": self._factor * seconds(costs, moved),
        }

    def _product(self, one: Product) -> float:
        return self._factor * seconds(self._computing.product, product(one, self._batch.width))
