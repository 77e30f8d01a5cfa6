"""Measures the device this runs on, for an entry of the table of hardware: `calibrate`; `written` keeps it.

Its own small runs alone: no step that an estimate may be compared with is fitted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from shoal_core.errors import UserError
from shoal_core.files import replace_file
from shoal_workloads.estimate import calibrate_cpu, calibrate_cuda
from shoal_workloads.estimate.hardware import Hardware, entries

__all__ = ["calibrate", "written"]


def calibrate(
    kind: str,
    *,
    workers: int | None = None,
    seconds: float = 60.0,
    precisions: Sequence[str] = calibrate_cpu.PRECISIONS,
    tell: Callable[[str], None] = print,
) -> Hardware:
    """The entry of this machine's device, as a worker of `shoal train` computes on it: a GPU (`kind` cuda), or one
    thread of a CPU (cpu). workers: that a node would have; none: as many as it has cores or GPUs; seconds: about, for
    what computes. `tell` is told what is measured, and what of it not to trust.

    Raises:
        UserError: there is no such device, or messages between workers failed.
    """
    if kind == "cuda":
        return calibrate_cuda.calibrate(tell)
    return calibrate_cpu.calibrate(workers or calibrate_cpu.cores(), seconds, precisions, tell)


# ---- the user's table


def written(name: str, entry: Hardware, path: Path) -> None:
    """Put an entry into the table at `path`, which is made, in the place of one of that name; the rest stays as it is
    written.

    Raises:
        UserError: what is there is no table, the name cannot be one, or it cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name.isdigit():
        raise UserError(
            f"--name: {name!r} can be no name of a device", "letters, digits, and . _ - between them, such as my-laptop"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else HEAD
        entries(text, str(path))
        kept = re.sub(rf"^{re.escape(name)}:.*\n(?:[ #\n].*\n?|\n)*", "", text, flags=re.MULTILINE)
        values = entry.model_dump(mode="json", exclude_none=True)
        added = yaml.safe_dump({name: values}, sort_keys=False, width=110, default_flow_style=None)
        whole = f"{kept.rstrip()}\n{added}"
        entries(whole, str(path))
        replace_file(path, whole)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be written ({error})", "name another file with --hardware") from error


HEAD = "# Devices of this user's, as `shoal plan` reads them beside its own: see docs/planning.md.\n"
