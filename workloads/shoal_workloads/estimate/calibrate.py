"""Measures the device this runs on, for an entry of the table of hardware: `calibrate`; `written` keeps it.

Its own small runs alone: no step that an estimate may be compared with is fitted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from shoal_core.errors import UserError
from shoal_core.files import replace_file
from shoal_workloads.estimate import calibrate_cpu, calibrate_cuda
from shoal_workloads.estimate.hardware import Hardware, entries

__all__ = ["calibrate", "check_table", "written"]


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


def check_table(name: str, path: Path) -> str:
    """What is written in the table at `path`, or would be at its head if there is none.

    Raises:
        UserError: it is no table, it cannot be written, or the name can be none of an entry.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", name):
        raise UserError(
            f"--name: {name!r} can be no name of a device", "a letter, then letters, digits, and . _ -, as my-laptop"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else HEAD
    except (OSError, UnicodeDecodeError) as error:
        raise unwritable(path, error) from error
    if not os.access(path.parent, os.W_OK):
        raise unwritable(path, "no right to write in its folder")
    entries(text, str(path))
    return text


def written(name: str, entry: Hardware, path: Path) -> None:
    """Put an entry into the table at `path`, which is made, in the place of one of that name; the rest stays as it is
    written.

    Raises:
        UserError: as `check_table`.
    """
    text = check_table(name, path)
    kept = re.sub(rf"^{re.escape(name)}:.*\n(?:[ \t].*\n?|\n)*", "", text, flags=re.MULTILINE)
    values = rounded(entry.model_dump(mode="json", exclude_none=True))
    added = yaml.safe_dump({name: values}, sort_keys=False, width=110, default_flow_style=None)
    whole = f"{kept.rstrip()}\n{added}"
    entries(whole, str(path))
    try:
        replace_file(path, whole)
    except OSError as error:
        raise unwritable(path, error) from error


def rounded(value: Any) -> Any:
    """Numbers to four digits, which is more than was measured."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def unwritable(path: Path, why: object) -> UserError:
    return UserError(f"{path} cannot be written ({why})", "name another file with --hardware")


HEAD = "# Devices of this user's, as `shoal plan` reads them beside its own: see docs/planning.md.\n"
