"""A run on the screen: a line for every event people care about, and for about fifty of its steps."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from shoal.printable import figure, printable
from shoal.record.masking import mask_text

if TYPE_CHECKING:
    from shoal.config import Job
    from shoal.driver import Run
    from shoal.train.launch import Ended

__all__ = ["Printer", "threads_tell", "watch"]


def watch(job: Job, run: Run) -> Ended:
    """Show a run to its end, which a signal to this process asks for (`driver.Orders`)."""
    from shoal import driver, tracking
    from shoal.record import layout
    from shoal.record.expected import told
    from shoal.record.jsonl import read_json
    from shoal.record.place import local_record
    from shoal.train.launch import Ended

    path = local_record(job.place)
    printer = Printer(job.steps, sys.stdout)
    with contextlib.ExitStack() as inside:
        # Ray prints what it thinks of every dead node, at length: kept, but not between the lines of the run.
        log = inside.enter_context((path / driver.log_of(path)).open("a"))
        inside.enter_context(contextlib.redirect_stdout(log))
        inside.enter_context(threads_tell(log))
        orders = inside.enter_context(driver.Orders(run, path))
        status, reason = driver.follow(run, path, printer.show, orders)
    print(f"run {job.run_id}: {status} ({printable(mask_text(reason))}); record: {printable(job.place)}", flush=True)
    if status != "left":
        for line in told(read_json(path / layout.RUN) or {}):
            print(printable(line), flush=True)
    if status != "left" and job.mlflow.enabled and (unmirrored := tracking.behind(path)):
        print(f"shoal: {printable(unmirrored)}", flush=True)
    return Ended(job, status, reason, orders.signal)


@contextlib.contextmanager
def threads_tell(log: TextIO) -> Iterator[None]:
    """What threads other than this one raise (Ray's, when its cluster is gone) goes to `log`."""
    before = threading.excepthook

    def tell(raised: threading.ExceptHookArgs) -> None:
        name = raised.thread.name if raised.thread else "a thread"
        print(f"{name}: {raised.exc_type.__name__}: {raised.exc_value}", file=log, flush=True)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before


class Printer:
    """A line for every event people care about, and for about fifty steps of a run."""

    QUIET = frozenset({"drain", "generation", "config_changed", "run_ending", "pipeline_step", "notified"})

    def __init__(self, steps: int, out: TextIO) -> None:
        self.steps, self.every, self.out = steps, max(1, steps // 50), out
        self._tokens = self._seconds = 0.0
        """Of the steps since the last line."""

    def show(self, kind: str, line: Mapping[str, Any]) -> None:
        from shoal.record.sentences import BACKGROUND, sentence

        if kind == "event":
            text = None if line["kind"] in self.QUIET | BACKGROUND else sentence(line)
            if text:
                print(f"  {text}", file=self.out, flush=True)
            return
        # by the workers' clock: commits may arrive late, and several at once
        self._tokens += line["tokens"]
        self._seconds += line.get("worker_seconds") or line["seconds"]
        if (line["step"] + 1) % self.every == 0:
            print(self.words(line), file=self.out, flush=True)
            self._tokens = self._seconds = 0.0

    def words(self, line: Mapping[str, Any]) -> str:
        from shoal.record.sentences import count, gpu_words

        told = [f"loss {figure(line.get('loss'), '.4f')}"]
        if line.get("lm_loss") is not None and line["lm_loss"] != line.get("loss"):
            told.append(f"lm_loss {line['lm_loss']:.4f}")
        told += [f"grad norm {figure(line.get('grad_norm'), '.3f')}", f"lr {figure(line.get('lr'), '.2e')}"]
        told += [count(line["cells"], "cell"), f"{self._tokens / max(self._seconds, 1e-9):,.0f} tokens/s"]
        told += gpu_words(line)
        return f"step {line['step'] + 1:>5}/{self.steps}  " + "  ".join(told)
