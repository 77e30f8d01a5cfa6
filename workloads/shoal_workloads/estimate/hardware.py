"""What a GPU can do, as a table that anyone can read and extend: `hardware.yaml`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shoal_core.errors import UserError
from shoal_workloads.config import wrong_fields

__all__ = ["Hardware", "Price", "hardware", "known_hardware"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Rates(_Entry):
    """Of products by type: peaks, or the shares of them that are reached. `fp8`: none has it."""

    bf16: float = Field(gt=0)
    fp8: float | None = Field(default=None, gt=0)


class Attention(_Entry):
    """Shares of bf16's peak that attention reaches."""

    forward: float = Field(gt=0, le=1)
    backward: float = Field(gt=0, le=1)


class Price(_Entry):
    """Dollars a GPU and hour, and of when and where they are. `spot`: of one that may be taken away at any time, if it
    is known."""

    dollars: float = Field(ge=0)
    spot: float | None = Field(default=None, ge=0)
    of: str
    source: str


class Hardware(_Entry):
    """One GPU, with its links. See the head of `hardware.yaml` for units."""

    tflops: Rates
    reached: Rates
    attention: Attention
    memory_gb: float = Field(gt=0)
    memory_tb_s: float = Field(gt=0)
    nvlink_gb_s: float = Field(gt=0)
    network_gb_s: float = Field(gt=0)
    sms: int = Field(gt=0)
    exchange_sms: int = Field(default=0, ge=0)
    price: Price


def known_hardware(own: Path | None = None) -> Mapping[str, Hardware]:
    """The table by names, with a file of one's own beside it, whose entries win.

    Raises:
        UserError: the file is not there, no YAML, or a field of it is wrong.
    """
    table = entries(files(__package__).joinpath("hardware.yaml").read_text(), "hardware.yaml")
    if own is None:
        return table
    try:
        return {**table, **entries(own.read_text(), str(own))}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--hardware: {own} cannot be read ({error})", "name a YAML file of GPUs") from error


def entries(text: str, source: str) -> dict[str, Hardware]:
    """Raises: as `known_hardware`."""
    try:
        return TypeAdapter(dict[str, Hardware]).validate_python(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UserError(f"{source}: no YAML ({error})", "write it like the shipped hardware.yaml") from error
    except ValidationError as error:
        raise UserError(f"{source}: {wrong_fields(error)}", "the fields of the shipped hardware.yaml") from error


def hardware(name: str, own: Path | None = None) -> Hardware:
    """The GPU of this name, however its letters are cased.

    Raises:
        UserError: there is none; the nearest names.
    """
    table = known_hardware(own)
    by_case = {known.lower(): known for known in table}
    if name.lower() in by_case:
        return table[by_case[name.lower()]]
    near = [by_case[one] for one in difflib.get_close_matches(name.lower(), by_case, n=3, cutoff=0.3)]
    raise UserError(
        f"--cluster: no GPU {name!r} is known",
        f"one of {', '.join(near or table)}, or describe it in a file and name that with --hardware",
    )
