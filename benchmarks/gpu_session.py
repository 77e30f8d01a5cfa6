"""One sitting of 15 minutes on one GPU: what to know first comes first, and each part has its own bound of time.

    python benchmarks/gpu_session.py --json session.json [--tiny] [--parts versions,commits,...] [--seconds 840]

Each part runs in a process of its own, so that a hang, an illegal access or a device assert ends that part alone. After
each the whole file is written again: what was found so far survives whatever ends the sitting. A part says `ok`, its
figures and its `seconds`; or `failed` with the end of what it printed; or that it ran out of time. `--tiny` runs the
same code with small shapes, on the CPU if there is no GPU. docs/first-gpu-run.md says what each failure would mean.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LIMITS = {
    "versions": 60,
    "commits": 120,
    "products": 90,
    "attention": 60,
    "nccl": 90,
    "runs": 180,
    "gemm_and_layer": 180,
    "profile": 60,
}
"""Parts in order of value, and the seconds that each may take."""

SITTING = 840.0
"""Seconds of a sitting of 15 minutes, less what it takes to get there."""

Run = Callable[[str, float], dict[str, Any]]


def sit(parts: Sequence[str], seconds: float, run: Run, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All parts in order, as far as the time reaches. `run`: does a part within so many seconds and returns what it
    found, its own `seconds` among it; `keep`: takes all that was found so far."""
    found: dict[str, Any] = {}
    for part in parts:
        left = seconds - sum(float(one.get("seconds", 0.0)) for one in found.values())
        limit = min(float(LIMITS[part]), left)
        found[part] = run(part, limit) if limit > 5 else {"status": "not reached", "seconds": 0.0}
        keep(found)
    return found


def in_a_process(part: str, limit: float, *, tiny: bool) -> dict[str, Any]:
    """A part's figures, from a process of its own."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        argv = [sys.executable, __file__, "--part", part, "--json", str(answer), *(["--tiny"] if tiny else [])]
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            said, _ = process.communicate(timeout=limit)
            status = "ok" if process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:  # what it began ends with it: a run left over would have the GPU while the next parts are measured
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if status == "out of time":
            said, _ = process.communicate()
        figures = json.loads(answer.read_text()) if answer.exists() else {}
    end = {} if status == "ok" else {"end": said[-4000:]}
    return {"status": status, "seconds": round(time.monotonic() - began, 1), **figures, **end}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes; runs without a GPU")
    parser.add_argument("--parts", default=",".join(LIMITS), help="which parts, separated by commas")
    parser.add_argument("--part", choices=LIMITS, help="this one, in this process")
    parser.add_argument("--seconds", type=float, default=SITTING, help="for all of them")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    options = parser.parse_args()
    if options.part:
        import gpu_parts

        options.json.write_text(json.dumps(gpu_parts.PARTS[options.part](gpu_parts.Bench(tiny=options.tiny))))
        return
    parts = options.parts.split(",")
    if unknown := [part for part in parts if part not in LIMITS]:
        parser.error(f"no part {unknown[0]!r}: one of {', '.join(LIMITS)}")

    def keep(found: dict[str, Any]) -> None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
        name, last = list(found.items())[-1]
        print(f"{name}: {last['status']}, {last['seconds']} s", flush=True)

    found = sit(parts, options.seconds, lambda part, limit: in_a_process(part, limit, tiny=options.tiny), keep)
    sys.exit(0 if all(one["status"] == "ok" for one in found.values()) else 1)


if __name__ == "__main__":
    main()
