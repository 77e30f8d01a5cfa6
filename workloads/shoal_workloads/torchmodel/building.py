"""A user's model, built as it is before it is spread, and what is known of it without its values."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from shoal_core.errors import UserError
from shoal_workloads.torchmodel.randomness import seeded
from shoal_workloads.torchmodel.theirs import their_code

if TYPE_CHECKING:
    from shoal_workloads.torchmodel.workload import TorchWorkload

__all__ = ["Blueprint", "blueprint", "built", "dtype_name", "hollow", "kept_buffers"]

Shapes = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Blueprint:
    """Shape and dtype of each `trained` and `frozen` parameter, and of each of the `buffers` that are kept."""

    trained: Shapes
    frozen: Shapes
    buffers: Shapes

    @property
    def parameters(self) -> int:
        return sum(torch.Size(shape).numel() for shape, _ in (*self.trained.values(), *self.frozen.values()))


def built(workload: TorchWorkload, seed: int) -> nn.Module:
    """The model whole, on the CPU, with the initial values that `torch.manual_seed(seed)` gives it.

    Raises:
        UserError: `build_model` raised, or it is no model that can be trained.
    """
    with seeded(seed), their_code(f"{type(workload).__name__}.build_model"):
        model = workload.build_model(workload.config)
    return _checked(workload, model)


def hollow(workload: TorchWorkload, seed: int) -> nn.Module:
    """The same whose parameters mean nothing and take no memory until they are written to."""
    model = _on_meta(workload, seed)
    if model is None:
        return built(workload, seed)
    filled: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            if p.is_meta and p not in filled:
                filled[p] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad)
            module._parameters[name] = filled.get(p, p)
    return model


def blueprint(workload: TorchWorkload) -> Blueprint:
    """Raises: as `built`."""
    model = _on_meta(workload, 0)
    if model is None:
        model = built(workload, 0)
    trained: dict[str, tuple[tuple[int, ...], str]] = {}
    frozen: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, p in model.named_parameters():
        (trained if p.requires_grad else frozen)[name] = tuple(p.shape), dtype_name(p)
    return Blueprint(
        trained, frozen, {name: (tuple(b.shape), dtype_name(b)) for name, b in kept_buffers(model).items()}
    )


def kept_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that are part of the model's state, by name."""
    found: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found[f"{path}.{name}" if path else name] = buffer
    return found


def _checked(workload: TorchWorkload, model: object) -> nn.Module:
    who = f"{type(workload).__name__}.build_model"
    if not isinstance(model, nn.Module):
        raise UserError(f"{who} returned {type(model).__name__}, no torch.nn.Module", "return the model")
    for name, p in model.named_parameters():
        if nn.parameter.is_lazy(p):
            raise UserError(
                f"{who}: parameter {name} has no shape before the model is called", "name its sizes (no Lazy)"
            )
        if not p.is_floating_point():
            raise UserError(f"{who}: parameter {name} is of type {dtype_name(p)}", "train in floating point")
        p.data = p.data.float()
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"{who}: no parameter requires a gradient", "leave some of them to be trained")
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            raise UserError(
                f"{who}: {name} is a {type(module).__name__}, whose running statistics hang on who trains which sample",
                "use GroupNorm or LayerNorm, or a batch norm with track_running_stats=False, or one that is frozen "
                "(torchvision.ops.FrozenBatchNorm2d)",
            )
    model.train()
    return model


def _on_meta(workload: TorchWorkload, seed: int) -> nn.Module | None:
    """The model with parameters that have no values; none: it needs them to be built."""
    try:
        with seeded(seed), _parameters_on_meta():
            model = workload.build_model(workload.config)
    except Exception:
        return None  # with values it shows whether it is theirs
    model = _checked(workload, model)
    return None if any(buffer.is_meta for buffer in model.buffers()) else model


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Inside, a parameter loses its values when it becomes a module's. One that becomes several modules' stays one."""
    known: dict[int, tuple[weakref.ref[nn.Parameter], nn.Parameter]] = {}

    def on_meta(module: nn.Module, name: str, param: nn.Parameter) -> nn.Parameter:
        if param.is_meta:
            return param
        was, empty = known.get(id(param), (None, None))
        if was is None or was() is not param or empty is None:
            empty = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
            known[id(param)] = weakref.ref(param), empty
        return empty

    hook: Any = on_meta  # PyTorch annotates that it returns nothing, and takes what it returns
    with register_module_parameter_registration_hook(hook):
        yield


def dtype_name(tensor: torch.Tensor) -> str:
    """As safetensors' readers and people say it: `float32`."""
    return str(tensor.dtype).removeprefix("torch.")
