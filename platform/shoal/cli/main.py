"""`shoal`: the command line. Heavy imports happen inside the commands, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from shoal import log
from shoal.cli import ckpt, cluster, dashboard, data, model
from shoal.cli.chaos import EPILOG, chaos
from shoal.cli.demo import demo
from shoal.cli.plan import plan
from shoal.cli.profile import profile
from shoal.cli.report import report
from shoal.cli.schedule import schedule
from shoal.cli.simulate import simulate
from shoal.cli.status import runs, status
from shoal.cli.top import top
from shoal.cli.train import stop, train
from shoal.printable import printable
from shoal.record.masking import mask_text
from shoal_core.errors import UserError
from shoal_data.files import explain

_INTERRUPTED = 130  # what Typer ends with after Ctrl-C

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pre-train DeepSeek-V3-style models on clusters whose nodes come and go.",
)
app.command()(demo)
app.command()(train)
app.command()(stop)
app.command()(status)
app.command()(top)
app.command()(report)
app.command(epilog=dashboard.EPILOG)(dashboard.dashboard)
app.command()(profile)
app.command()(runs)
app.command(epilog=EPILOG)(chaos)
app.command()(plan)
app.command()(simulate)
app.command()(schedule)
app.command()(model.params)
app.command()(model.export)
app.command("import")(model.import_)
app.command()(model.generate)
app.add_typer(model.eval_app, name="eval")
app.add_typer(ckpt.app, name="ckpt")
app.add_typer(cluster.app, name="cluster")
app.add_typer(data.app, name="data")


def run() -> None:
    """Entry point: errors that are the user's to mend are one message and exit code 2; Ctrl-C is one line and 130.

    What is left with a traceback is a fault of this software."""
    _open_streams()
    log.begin("shoal", least="warning")
    try:
        app()
    except UserError as error:
        _end(error)
    except OSError as error:  # a full or read-only disk, no permission, no descriptors, a file that is gone
        _end(explain(error))
    except MemoryError:
        _end(UserError("not enough memory on this machine", "end something else, or ask for less at a time"))
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            print("shoal: interrupted", file=sys.stderr)
        raise
    except Exception as error:
        if not of_ray(error):
            raise
        _end(UserError(f"Ray failed: {first_line(error)}", "see that the cluster is up, and run the command again"))


def _open_streams() -> None:
    """Give what was started without standard streams (`2>&-`) silent ones, whose numbers no other file then gets."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def of_ray(error: Exception) -> bool:
    """Whether an error tells of Ray's state (a cluster that is gone, a worker that died), not of a fault in a task."""
    ray = sys.modules.get("ray")
    if ray is None:
        return False
    return isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _end(error: Exception) -> NoReturn:
    print(f"shoal: {printable(mask_text(str(error)), lines=True)}", file=sys.stderr)
    sys.exit(2)
