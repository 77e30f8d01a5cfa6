"""`shoal plan --calibrate`: measures the device it runs on, for the user's own table of hardware."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.printable import printable
from shoal_core.errors import UserError

if TYPE_CHECKING:
    from shoal_workloads.estimate.hardware import Hardware

__all__ = ["calibrated", "name_of"]


def calibrated(path: Path | None, name: str | None, *, as_json: bool) -> None:
    """Measure, tell what is measured while it is, and keep it in the table at `path`, by default the user's own.

    Raises:
        UserError: it could not be measured, or the table not be written (known before anything is measured where it
            can be).
    """
    import torch

    from shoal_workloads.estimate.calibrate import calibrate, check_table
    from shoal_workloads.estimate.hardware import device_name, own_file

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = device_name(kind)
    path, name = path or own_file(), name or name_of(device)
    check_table(name, path)
    began = time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - began:4.0f} s  {printable(what)}", file=sys.stderr, flush=True)

    tell(f"{device}: less than two minutes, best with nothing else running")
    found = calibrate(kind, tell=tell)
    keep(name, found, path)
    if as_json:
        print(json.dumps({"name": name, "file": str(path), **found.model_dump(mode="json", exclude_none=True)}))
        return
    for line in lines(name, found, path):
        print(printable(line))


def keep(name: str, found: Hardware, path: Path) -> None:
    """Raises: UserError: the table cannot be written; what was measured is printed, so that it is not lost."""
    from shoal_workloads.estimate.calibrate import written

    try:
        written(name, found, path)
    except UserError:
        print(json.dumps({name: found.model_dump(mode="json", exclude_none=True)}))
        raise


def lines(name: str, found: Hardware, path: Path) -> list[str]:
    """What was measured, and what to do with it."""
    calibration = found.calibration
    assert calibration is not None
    rates = {precision: 1e-9 / one.product["flop"] for precision, one in calibration.computing.items()}
    told = ", ".join(f"{rate:,.0f} in {precision}" for precision, rate in rates.items())
    best = told or f"{1e3 * found.tflops.bf16 * found.reached.bf16:,.0f} in bf16"
    others = f", others took {calibration.busy:.0%} of the time" if calibration.computing else ""  # a CPU's alone
    said = [
        f"{name} ({found.device}): {best} x 10^9 FLOP/s of products; memory {1e3 * found.memory_tb_s:,.1f} x 10^9 "
        f"bytes/s; repeats differ by {calibration.spread:.1%}{others}",
        f"kept in {path}",
    ]
    if calibration.cores > 1 and calibration.computing:
        said.append(f"{calibration.cores} workers at once: {calibration.crowded:.2f} times as long each")
    slots = calibration.cores if calibration.computing else 8
    return [*said, f"now: shoal plan JOB.yaml --cluster 1x{slots}x{name}"]


def name_of(device: str) -> str:
    """A name for a device that has none yet, such as amd-epyc."""
    words = re.sub(r"\(R\)|\(TM\)|@.*|\bCPU\b", " ", device, flags=re.IGNORECASE).lower()
    name = re.sub(r"[^a-z0-9]+", "-", words).strip("-") or "here"
    return name if name[0].isalpha() else f"device-{name}"
