"""What `shoal dashboard` takes: from a line to the page, to open a long run, and from the training beside it.

    python benchmarks/dashboard.py [delay] [open] [cost] [--steps 100000] [--pairs 6] [--json FILE]

`delay`: a run is written ten lines a second while headless Chromium shows it; of each step, from just before its line
is written to the moment the page's own script has drawn it. `open`: a record of `--steps` steps with deaths and
recoveries; from the navigation, right after the address is printed, to the first complete picture, each time by another
server. `cost`: a run of two cells of two workers under the lab's control plane; stretches with and without a dashboard
whose stream is read, by turns, and steps a second in each; beside it the processor time of the dashboard's process,
which is what it takes where cores are full. The browser runs on the machine of whoever looks, and is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests

from overhead import cpu_seconds
from shoal.record.rundir import RunDir
from tests.platform.test_dashboard_views import line
from tests.support.browser import Browser, browser
from tests.support.lab import lab

DRAWN = """
window.drawn = [];
new MutationObserver(() => window.drawn.push([Number(document.body.dataset.step), Date.now() / 1000]))
  .observe(document.body, {attributes: true, attributeFilter: ["data-step"]});
"""


@contextlib.contextmanager
def dashboard(target: Path) -> Iterator[tuple[str, int]]:
    """The URL and the process of a dashboard of its own."""
    command = [sys.executable, "-c", "from shoal.cli.main import run; run()", "dashboard", str(target), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"], process.pid
        finally:
            process.terminate()


def shown(driver: Browser, url: str, seconds: float = 120.0) -> float:
    """Seconds from the navigation to the first complete picture."""
    driver.get(url)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := driver.execute_script("return document.body.dataset.drawn === 'yes' && performance.now() / 1000"):
            return float(found)
        time.sleep(0.01)
    raise TimeoutError("the page showed nothing")


def delay(folder: Path, driver: Browser, lines: int) -> dict[str, float]:
    """Seconds from a line to the page."""
    run = RunDir.create(folder, "delay", {}, resume=False)
    run.append_event("run_started", run_id="delay", steps=lines, cells=1, workers_per_cell=1)
    run.append_step(line(0))
    written: list[float] = []
    with dashboard(run.path) as (url, _):
        shown(driver, url)
        driver.execute_script(DRAWN)
        for step in range(1, lines):
            written.append(time.time())
            run.append_step(line(step, loss=math.exp(-step / 100)))
            time.sleep(0.1)
        time.sleep(3.0)
        drawn = driver.execute_script("return window.drawn")
    waited = [next(at for step, at in drawn if step > number) - begun for number, begun in enumerate(written, start=1)]
    return {"lines": len(waited), "median_s": median(waited), "max_s": max(waited)}


def long_record(folder: Path, steps: int) -> RunDir:
    """Eight cells of eight workers on 16 nodes; every 2,000 steps one dies and is replaced."""
    run = RunDir.create(folder, f"long{steps}", {}, resume=False)
    crews = {str(c): [f"r/cell{c}/stage0/shard{s}@node{2 * c + s // 4}" for s in range(8)] for c in range(8)}
    run.append_event("run_started", run_id="long", steps=steps, cells=8, workers_per_cell=8, time=100.0)
    for actor in (actor for crew in crews.values() for actor in crew):
        run.append_event("worker_ready", actor=actor, node=actor.rpartition("@")[2], pid=1, time=101.0)
    run.append_event("generation", generation=0, step=0, live=8, cells=crews, attempts={}, time=102.0)
    with (run.path / "steps.jsonl").open("a") as file:
        for step in range(steps):
            told = line(step, loss=8 * math.exp(-step / 2e4) + 3, stats=[0.1] * 12, worker_seconds=0.99, norm_sq=1.0)
            file.write(json.dumps(told) + "\n")
    for number, step in enumerate(range(2000, steps, 2000), start=1):
        cell, at = str(number % 8), 100.0 + step
        dead, crews = crews[cell][0], {**crews, cell: [f"r/spare{number}@node{number % 16}", *crews[cell][1:]]}
        run.append_event(
            "death", actor=dead, node="n", pid=1, cell=int(cell), how="connection lost", step=step, time=at
        )
        run.append_event("worker_ready", actor=crews[cell][0], node=f"node{number % 16}", pid=1, time=at + 0.1)
        run.append_event("generation", generation=number, step=step, live=8, cells=crews, attempts={}, time=at + 0.2)
        run.append_event("recovery", rung="heal", cell=int(cell), nodes=[], actors=[dead], phases={"form": 0.4},
                         next_commit=0.5, full_strength=0.9, steps_lost=0, time=at + 0.9)  # fmt: skip
    run.append_event("run_ended", status="done", reason="all steps are committed", time=101.0 + steps)
    return run


def opening(folder: Path, driver: Browser, steps: int, repeats: int) -> dict[str, Any]:
    """Seconds to the first complete picture, and to that of a short run (what the browser itself takes)."""
    found: dict[str, Any] = {"steps": steps}
    for name, size in (("short_s", 100), ("long_s", steps)):
        run, took = long_record(folder, size), []
        for _ in range(repeats):
            with dashboard(run.path) as (url, _):
                took.append(shown(driver, url))
        found |= {name: median(took), name.replace("_s", "_max_s"): max(took)}
    return found


def cost(folder: Path, pairs: int, seconds: float) -> dict[str, Any]:
    """Steps a second with a dashboard over those without, pair by pair, and its processor time."""
    ratios, used = [], []
    with lab(folder, {"n0": 2, "n1": 2}, cells=2, workers_per_cell=2, steps=1_000_000) as one:
        one.full(20)
        for pair in range(pairs):
            rates = {}
            for watched in (False, True) if pair % 2 else (True, False):
                with contextlib.ExitStack() as stack:
                    process = None
                    if watched:
                        url, process = stack.enter_context(dashboard(one.path))
                        threading.Thread(target=read_stream, args=(url,), daemon=True).start()
                        time.sleep(3.0)
                    began, done = time.monotonic(), one.committed()
                    busy = 0.0 if process is None else cpu_seconds(process)
                    time.sleep(seconds)
                    took = time.monotonic() - began
                    rates[watched] = (one.committed() - done) / took
                    if process is not None:
                        used.append((cpu_seconds(process) - busy) / took)
            ratios.append(rates[True] / rates[False])
    return {"pairs": pairs, "ratio_median": median(ratios), "ratios": ratios, "processor_share": median(used),
            "cores": os.cpu_count()}  # fmt: skip


def read_stream(url: str) -> None:
    """Read news until the server ends."""
    place = url.removeprefix("http://").strip("/")
    listing = http.client.HTTPConnection(place)
    listing.request("GET", "/runs")
    key = json.loads(listing.getresponse().read())["runs"][0]["key"]
    stream = http.client.HTTPConnection(place)
    stream.request("GET", f"/news?run={key}")
    answer = stream.getresponse()
    with contextlib.suppress(OSError, http.client.HTTPException):
        while answer.readline():
            pass


def told(figures: dict[str, Any]) -> dict[str, Any]:
    """These figures, printed, with the load of this machine in the minute before."""
    found = {**figures, "load": os.getloadavg()[0]}
    print(json.dumps(found, indent=1), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="*", choices=[[], "delay", "open", "cost"], default=[])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    wanted, found = arguments.what or ["delay", "open", "cost"], dict[str, Any]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"delay", "open"} & set(wanted):
            with browser(folder / "profile") as driver:
                if "delay" in wanted:
                    found["delay"] = told(delay(folder, driver, arguments.lines))
                if "open" in wanted:
                    found["open"] = told(opening(folder, driver, arguments.steps, arguments.repeats))
        if "cost" in wanted:
            found["cost"] = told(cost(folder / "lab", arguments.pairs, arguments.seconds))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
