"""Any PyTorch model as a workload: what its user writes, and what Shoal makes of it (docs/your-model.md).

>>> class Mine(TorchWorkload):
...     class Config(TorchWorkload.Config):
...         width: int = 64
...     def build_model(self, config):
...         return torch.nn.Linear(config.width, 1)
...     def dataset(self, config):
...         return [(torch.randn(config.width), torch.randn(1)) for _ in range(1000)]
...     def loss(self, model, batch):
...         x, y = batch
...         return ((model(x) - y) ** 2).sum(), len(x)
"""

from __future__ import annotations

import copy
import importlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.utils.data import default_collate

from shoal_core.errors import UserError
from shoal_core.workload import Crew, Identity, Workload
from shoal_workloads.places import check_from_root
from shoal_workloads.torchmodel.building import Blueprint, blueprint
from shoal_workloads.torchmodel.config import TorchConfig
from shoal_workloads.torchmodel.optimizer import Make, kept
from shoal_workloads.torchmodel.order import Dataset, Items
from shoal_workloads.torchmodel.shard import TorchShard
from shoal_workloads.torchmodel.spread import default_blocks
from shoal_workloads.torchmodel.theirs import their_code
from shoal_workloads.torchmodel.trial import try_out

__all__ = ["TorchWorkload"]


class TorchWorkload(Workload):
    """A model, its loss and its data, written as for one process. Subclass it: `build_model`, `loss` and `dataset` must
    be there, the other methods under "what you may write" may."""

    class Config(TorchConfig):
        """Settings of every such workload; subclass it for your own."""

    if_lacking = "write it: docs/your-model.md shows how"
    config: Any
    figures: ClassVar[tuple[str, ...]] = ()
    """Names of what `loss` sums beside the loss, such as right answers; each step tells them divided by its count."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self._origin = (0, 0)
        self._tried: list[str] = []

    # ---- what you write

    @abstractmethod
    def build_model(self, config: Any) -> nn.Module:
        """The model as in one process, on the CPU, with its initial values: the random generators were seeded."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> tuple[Any, ...]:
        """The sum of the losses over a batch, and the count that their mean divides by (tokens, samples). With
        `figures` also a mapping of their sums. Call the model itself (`model(...)`), not one of its methods."""

    @abstractmethod
    def dataset(self, config: Any) -> Any:
        """What is trained on: anything with a length and an item at every index. Walked in a seeded permutation."""

    # ---- what you may write

    def heldout(self, config: Any) -> Any:
        """What is evaluated on, of which the first `heldout_samples` are taken. Left out: nothing is evaluated."""
        return None

    def collate(self, items: list[Any]) -> Any:
        """The batch that `loss` is given, of so many items. Left out: as PyTorch's `DataLoader` does it."""
        return default_collate(items)

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        """Modules whose parameters are gathered at once, block by block. Left out: the children of the longest
        `ModuleList`."""
        return default_blocks(model)

    def optimizer(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        """An optimizer that works element by element, over the rows of the parameters that a worker has: of all that
        are trained, as `build_model(...).parameters()` has them, but those without dimensions last. Its learning rates
        are the peak, which the schedule scales. Left out: Shoal's AdamW, as the settings say."""
        raise NotImplementedError

    def weights(self, config: Any) -> str | None:
        """A folder or store of safetensors whose names are the model's: initial values, of which each worker reads
        its own rows. Left out: those of `build_model`."""
        return None

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Figures of an evaluation, from the sums `loss`, `count` and `figures`. Left out: each divided by the count,
        `heldout_` before its name."""
        return {f"heldout_{name}": value / sums["count"] for name, value in sums.items() if name != "count"}

    def fingerprint(self, dataset: Dataset) -> str | int | None:
        """What tells a dataset from others of its length, to refuse to go on with another. Left out: its attribute
        `fingerprint`, if it has one."""
        return getattr(dataset, "fingerprint", None)

    # ---- what the platform asks, see `Workload`

    def preflight(self, workers_per_cell: int) -> dict[str, Any]:
        """Check what the user wrote, and describe the run."""
        if self.start is not None:
            check_from_root(f"{type(self).__name__}.weights", self.start)
        found, batch = self.blueprint, self.config.global_batch
        self._tried = try_out(self)
        length = len(self.data)
        trained = sum(torch.Size(shape).numel() for shape, _ in found.trained.values())
        about = {"parameters": found.parameters, "samples": length, "samples_per_step": batch}
        if trained != found.parameters:
            about["trained_parameters"] = trained
        if self.heldout_length:
            about["heldout_samples"] = self.heldout_length
        return {**about, "steps_per_epoch": length / batch}

    def samples(self, step: int) -> tuple[int, int]:
        """See `Workload`."""
        steps, samples = self._origin
        first = samples + (step - steps) * self.config.global_batch
        return first, first + self.config.global_batch

    def go_on(self, steps: int, samples: int) -> None:
        """See `Workload`."""
        self._origin = (steps, samples)

    def identity(self) -> Identity:
        """See `Workload`: a dataset is known by its length, and by its fingerprint if it has one."""
        found = self.blueprint
        shapes = {name: shape for name, (shape, _) in found.trained.items()}
        state = {f"model.{name}": kind for name, kind in (*found.trained.items(), *found.frozen.items())}
        state |= {f"buffer.{name}": kind for name, kind in found.buffers.items()}
        kinds = ["ema"] if self.config.ema_decay else []
        if self.own_optimizer is None:
            kinds += ["adam_m", "adam_v"]
        else:
            state |= kept(self.own_optimizer, shapes)
        state |= {f"{kind}.{name}": (shape, "float32") for kind in kinds for name, shape in shapes.items()}
        with their_code(f"{type(self).__name__}.fingerprint"):
            told = self.fingerprint(self.data)
        data = {"dataset length": len(self.data), "dataset": told, "seed": self.config.seed}
        return {"state": state | {"guard": ((3,), "float64")}, "data": data}

    def remarks(self, start: int, steps: int) -> list[str]:
        """See `Workload`."""
        found, config = list(self._tried), self.config
        if config.schedule != "constant" and steps > config.schedule_steps:
            end = f"at {config.final_lr:.3g} of its peak"
            found.append(f"schedule_steps: the learning rate stays {end} from step {config.schedule_steps:,} on")
        if steps < config.warmup_steps:
            found.append(
                f"warmup_steps is {config.warmup_steps:,}, the run has {steps:,} steps: it ends in its warm-up"
            )
        return found

    @property
    def micro_batch(self) -> int:
        """See `Workload`."""
        return int(self.config.micro_batch)

    @property
    def runs_on(self) -> str:
        """See `Workload`."""
        return str(self.config.device)

    def mesh(self, workers_per_cell: int) -> dict[str, int]:
        """See `Workload`: all of a cell's workers share the model by FSDP."""
        return {"pp": 1, "ep": 1}

    def shaped(self, sizes: Mapping[str, int]) -> Self:
        """See `Workload`: in cells of any number of FSDP workers."""
        if sizes["pp"] > 1 or sizes["ep"] > 1:
            raise UserError(
                f"{type(self).__name__}: a PyTorch model is cut by FSDP alone, not for {sizes['pp']} stages and "
                f"{sizes['ep']} workers that share experts",
                "leave pp and ep at 1",
            )
        return copy.copy(self)

    def other_bits(self, own: Mapping[str, int], other: Mapping[str, int]) -> str | None:
        """See `Workload`."""
        if own["fsdp"] == other["fsdp"]:
            return None
        if points := [name for name, (shape, _) in self.blueprint.trained.items() if not shape]:
            return f"gradients of {points[0]}, which has no dimensions, are added up before they are rounded"
        if self.own_optimizer is not None:
            return "an optimizer of torch's may round what is left over at the end of a shard otherwise"
        return None

    @property
    def rolls_back(self) -> bool:
        """See `Workload`."""
        return bool(self.config.guard.action == "roll_back")

    @property
    def reduces_once(self) -> bool:
        """See `Workload`."""
        return bool(self.config.reduce_once)

    def predicted(self, step: int, cells: int, crew: Crew) -> dict[str, Any]:
        """See `Workload`."""
        from shoal_workloads.estimate.expected import torch_expected

        return torch_expected(self, cells, crew)

    def warm_up(self, workers: int) -> None:
        """See `Workload`: the user's model is not built. FSDP and torch's optimizers import the compiler when they are
        first used, a second and more."""
        if workers > 1 or self.own_optimizer is not None:
            importlib.import_module("torch._dynamo")
        torch.nn.Linear(8, 8, device=self.config.device)(torch.ones(1, 8, device=self.config.device)).sum().backward()

    def build(self, seed: int) -> TorchShard:
        """See `Workload`."""
        return TorchShard(self, seed)

    def build_to_fill(self, seed: int) -> TorchShard:
        """See `Workload`."""
        return TorchShard(self, seed, state_follows=True)

    # ---- what its shards ask

    @cached_property
    def blueprint(self) -> Blueprint:
        """What the model is made of."""
        return blueprint(self)

    @cached_property
    def data(self) -> Any:
        """The dataset, opened once in a process: a `Dataset`, and what else the user's has."""
        return self._opened("dataset")

    @cached_property
    def items(self) -> Items:
        """Positions of the global order -> batches."""
        return Items(self.data, self.config.seed, self.config.seed, self.collate)

    @cached_property
    def heldout_items(self) -> Items | None:
        """The same of the held-out set, in its own order."""
        found = self._heldout
        return None if found is None else Items(found, None, self.config.seed, self.collate)

    @property
    def heldout_length(self) -> int:
        """Samples that are evaluated."""
        return 0 if self._heldout is None else min(len(self._heldout), self.config.heldout_samples)

    @property
    def start(self) -> str | None:
        """Where initial values lie, if the user says so."""
        who = f"{type(self).__name__}.weights"
        with their_code(who):
            found = self.weights(self.config)
            if found is None or isinstance(found, str):
                return found
            raise UserError(f"{who} returned {type(found).__name__}, no text", "return the folder's address, str(path)")

    @property
    def own_optimizer(self) -> Make | None:
        """`optimizer`, if the user wrote it."""
        return None if type(self).optimizer is TorchWorkload.optimizer else self.optimizer

    @cached_property
    def _heldout(self) -> Dataset | None:
        return self._opened("heldout")

    def _opened(self, method: str) -> Any:
        """Raises: UserError: the method raised, or what it returns is no such dataset."""
        who = f"{type(self).__name__}.{method}"
        with their_code(who):
            found = getattr(self, method)(self.config)
            if found is None and method == "heldout":
                return None
            if not (hasattr(found, "__len__") and hasattr(found, "__getitem__")):
                raise UserError(f"{who} returned {type(found).__name__}", "return what has a length and takes an index")
            if not len(found):
                raise UserError(f"{who}: there is nothing in it", "name a dataset with samples")
        return found
