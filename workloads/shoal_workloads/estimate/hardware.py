"""What a device can do, as a table that anyone can read and extend: `hardware.yaml`, beside which lies the user's own,
that `shoal plan --calibrate` writes."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shoal_core.devices import device_name
from shoal_core.errors import UserError
from shoal_workloads.config import wrong_fields

__all__ = [
    "Calibration",
    "Computing",
    "Core",
    "Costs",
    "Hardware",
    "Learned",
    "Line",
    "Messages",
    "Passes",
    "Price",
    "by_words",
    "calibrated",
    "device_name",
    "entries",
    "entry_of",
    "hardware",
    "known_hardware",
    "own_file",
    "shipped",
]

OWN = "SHOAL_HARDWARE"
"""Environment variable that names the user's own table."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Rates(_Entry):
    """Of products by type: peaks, or the shares of them that are reached. `fp8`: none has it."""

    bf16: float = Field(gt=0)
    fp8: float | None = Field(default=None, gt=0)


class Peaks(Rates):
    """`fp32`: of the units that add up FP8's partial sums with their scales; none: its matrix units do."""

    fp32: float | None = Field(default=None, gt=0)


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


Costs = Mapping[str, Annotated[float, Field(ge=0)]]
"""Seconds for one of each thing that `amounts` counts."""


class Line(_Entry):
    """Seconds of one: `fixed`, and so many for each byte."""

    fixed: float = Field(ge=0)
    byte: float = Field(ge=0)

    def seconds(self, moved: float) -> float:
        return self.fixed + self.byte * moved


class Passes(_Entry):
    """Of a layer: a forward pass, the gradient of its input, the gradients of its weights, and both at once."""

    forward: Costs
    input: Costs
    weight: Costs
    backward: Costs


class Core(_Entry):
    """Of attention itself."""

    forward: Costs
    backward: Costs


class Computing(_Entry):
    """What computing takes in one precision, each by the amounts of the function of `amounts` of that name.

    Attributes:
        product: of a linear layer or an expert.
        core: attention.
        dense, moe: what a layer takes beside both.
        ends: embedding, final norm, output head with the loss, and what Python does for a micro-batch, forward and
            backward; less the head's products.
    """

    product: Costs
    core: Core
    dense: Passes
    moe: Passes
    ends: Costs


class Messages(_Entry):
    """Between processes of one machine, by the bytes that a worker takes in from others: see `calibrate_messages`.

    Attributes:
        gather, reduce: FSDP's, of one unit.
        holders_gather, holders_reduce: ZeRO-1's, among the holders of a pipeline's stages.
        exchange: rows to experts, or back.
        send: hidden states to the next stage.
        sum: gradients across cells.
        held: what ZeRO-1 copies of parameters that one worker holds alone, in a step, by their bytes.
        waiting: workers that meet n times while each computes for t seconds wait sqrt(n t) of it besides: their times
            drift apart as a random walk does.
    """

    gather: Line
    reduce: Line
    holders_gather: Line
    holders_reduce: Line
    exchange: Line
    send: Line
    sum: Line
    held: Line
    waiting: float = Field(ge=0)


class Calibration(_Entry):
    """What was measured on the device itself. Without `computing` (a GPU) products and attention are counted by
    tiles and by shares of the peak, which were measured too.

    Attributes:
        measured: the day. versions: of torch.
        spread: of repeats about their median, relative, at the median. busy: the share of the time in which the
            process did not run.
        computing: by precision.
        host: seconds of Python for a layer (`dense`, `moe`), by pass, where the device works on behind it.
        update: seconds of a step's end for each parameter.
        messages: between workers of the machine; none of it hides behind computing, since the same cores do both.
        crowded: how many times as long computing takes while every core computes.
        cores: of the machine; workers that are more take turns.
    """

    measured: str
    versions: Mapping[str, str]
    spread: float = Field(ge=0)
    busy: float = Field(ge=0)
    computing: Mapping[str, Computing] = {}
    host: Mapping[str, Costs] = {}
    update: float = Field(default=0.0, ge=0)
    messages: Messages | None = None
    crowded: float = Field(default=1.0, ge=1)
    cores: int = Field(default=1, gt=0)


class Learned(_Entry):
    """What runs on the device took, of what was reckoned for them (`shoal plan --learn`): factors on the `step` and on
    the `memory`; from which `runs`, and the day."""

    step: float = Field(default=1.0, gt=0)
    memory: float = Field(default=1.0, gt=0)
    runs: tuple[str, ...]
    of: str

    @property
    def words(self) -> str:
        many = f"{len(self.runs)} runs" if len(self.runs) > 1 else f"run {self.runs[0]}"
        return f"by what {many} took ({self.of}): step x {self.step:.3g}, memory x {self.memory:.3g}"


class Hardware(_Entry):
    """One GPU, or one core of a CPU, with its links. See the head of `hardware.yaml` for units. `device`: what the
    machine itself calls it, where it was measured."""

    tflops: Peaks
    reached: Rates
    attention: Attention
    memory_gb: float = Field(gt=0)
    memory_tb_s: float = Field(gt=0)
    nvlink_gb_s: float = Field(gt=0)
    network_gb_s: float = Field(gt=0)
    sms: int = Field(gt=0)
    exchange_sms: int = Field(default=0, ge=0)
    price: Price
    device: str | None = None
    calibration: Calibration | None = None
    learned: Learned | None = None

    @property
    def kind(self) -> Literal["cpu", "cuda"]:
        """What a job calls it."""
        return "cpu" if self.calibration is not None and self.calibration.computing else "cuda"


def own_file() -> Path:
    """Where the user's own table is, or would be: `$SHOAL_HARDWARE`, else `~/.config/shoal/hardware.yaml`
    (`$XDG_CONFIG_HOME` for `~/.config`)."""
    named = os.environ.get(OWN)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "shoal" / "hardware.yaml"


def shipped() -> dict[str, Hardware]:
    """The table of this package alone."""
    return entries(files(__package__).joinpath("hardware.yaml").read_text(), "hardware.yaml")


def known_hardware(own: Path | None = None) -> Mapping[str, Hardware]:
    """The table by names, with the user's own beside it, and a file that was named for this once; later entries win.

    Raises:
        UserError: a file that was named is not there, one is no YAML, or a field of it is wrong.
    """
    table = shipped()
    kept = own_file()
    for path, said in ((kept, OWN), (own, "--hardware")):
        if path is None or (path is kept and not os.environ.get(OWN) and not path.exists()):
            continue
        try:
            table |= entries(path.read_text(), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{said}: {path} cannot be read ({error})", "name a YAML file of GPUs") from error
    return table


def calibrated(device: str, own: Path | None = None) -> tuple[str, Hardware] | None:
    """The entry of the user's tables that was measured on a device of this name (`device_name`), and its name there.

    Raises:
        UserError: as `known_hardware`.
    """
    found = [(name, one) for name, one in known_hardware(own).items() if one.calibration and one.device == device]
    return found[-1] if found else None


def entry_of(device: str, own: Path | None = None) -> tuple[str, Hardware] | None:
    """The entry for a device of this name, and its own: what was measured on one, else what its name says ("NVIDIA H100
    80GB HBM3" is an H100). None: there is none.

    Raises:
        UserError: as `known_hardware`.
    """
    measured = calibrated(device, own)
    if measured is not None:
        return measured
    return by_words(device, known_hardware(own))


def by_words(device: str, table: Mapping[str, Hardware]) -> tuple[str, Hardware] | None:
    """The entry whose name a device's has in it: of several the longest."""
    words = set(device.replace("-", " ").split())
    known = [name for name in table if set(name.split()) <= words]
    return max(((name, table[name]) for name in known), key=lambda pair: len(pair[0]), default=None)


def entries(text: str, source: str) -> dict[str, Hardware]:
    """Raises: as `known_hardware`."""
    try:
        return TypeAdapter(dict[str, Hardware]).validate_python(yaml.safe_load(text) or {})
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
