"""`shoal`: the command line. Heavy imports happen inside the commands, so that `--help` is quick."""

from __future__ import annotations

import sys

import typer

from shoal.cli import cluster, data, model
from shoal.cli.chaos import chaos
from shoal.cli.demo import demo
from shoal.cli.plan import plan
from shoal.cli.report import report
from shoal.cli.schedule import schedule
from shoal.cli.simulate import simulate
from shoal.cli.status import runs, status
from shoal.cli.train import stop, train
from shoal.errors import UserError
from shoal_data.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pre-train DeepSeek-V3-style models on clusters whose nodes come and go.",
)
app.command()(demo)
app.command()(train)
app.command()(stop)
app.command()(status)
app.command()(report)
app.command()(runs)
app.command()(chaos)
app.command()(plan)
app.command()(simulate)
app.command()(schedule)
app.command()(model.params)
app.command()(model.export)
app.command("import")(model.import_)
app.command()(model.generate)
app.add_typer(model.eval_app, name="eval")
app.add_typer(cluster.app, name="cluster")
app.add_typer(data.app, name="data")


def run() -> None:
    """Entry point: errors that are the user's to mend are one message and exit code 2."""
    try:
        app()
    except (UserError, InputError) as error:
        print(f"shoal: {error}", file=sys.stderr)
        sys.exit(2)
