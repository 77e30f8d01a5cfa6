"""Every command that prints a result gives it to programs too: `--json` is one JSON value on standard output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from shoal.cli.figures import alone, give
from shoal.cli.main import app
from shoal_core.errors import UserError

NO_RESULT = {
    "cluster exec": "what it runs prints, not Shoal",
    "cluster down": "it takes things away; that it ended with 0 is all",
    "data cat": "prints JSON lines as it is",
}


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    if not hasattr(command, "commands"):
        yield " ".join(path), command
        return
    for name, inner in command.commands.items():
        yield from commands(inner, (*path, name))


def test_every_command_has_json_or_a_reason() -> None:
    found = dict(commands(get_command(app)))
    without = {name for name, command in found.items() if not any("--json" in option.opts for option in command.params)}
    assert len(found) > 40
    assert without == set(NO_RESULT)


def test_what_is_said_on_the_way_leaves_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with alone(True):
        print("on the way")
    give({"a": 1})
    assert capsys.readouterr() == ('{"a": 1}\n', "on the way\n")
    with alone(False):
        print("on the way")
    assert capsys.readouterr().out == "on the way\n"


def figures(*argv: str) -> Any:
    done = CliRunner().invoke(app, [*argv, "--json"])
    assert done.exit_code == 0, done.output
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def words(*argv: str) -> str:
    done = CliRunner().invoke(app, list(argv))
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.long
def test_commands_of_data_give_the_figures_they_print(tmp_path: Path) -> None:
    sample = figures("data", "sample", "--out", str(tmp_path / "raw"))
    assert f"{sample['train']:,} bytes to train on, {sample['heldout']:,} held out" in words(
        "data", "sample", "--out", str(tmp_path / "raw")
    )
    text = ["--input", str(tmp_path / "raw" / "heldout.parquet")]
    argv = ["data", "tokenizer-train", *text, "--vocab-size", "400", "--out", str(tmp_path / "tok")]
    tokenizer = figures(*argv)["tokenizer"]
    assert words(*argv) == f"{tokenizer}\n"
    argv = ["data", "tokenize", *text, "--tokenizer", tokenizer, "--out", str(tmp_path / "corpus")]
    made = figures(*argv)
    assert f"{made['tokens']:,} tokens, {made['documents']:,} documents, {made['bytes']:,} bytes" in words(*argv)
    argv = ["data", "verify", str(tmp_path / "corpus")]
    assert f"{figures(*argv)['shards']} shards, {made['tokens']:,} tokens: all as written" in words(*argv)
    argv = ["data", "inspect", str(tmp_path / "corpus"), "--documents", "2"]
    seen, said = figures(*argv), words(*argv)
    assert len(seen["documents"]) == 2
    for document in seen["documents"]:
        assert (
            f"row {document['row']} ({document['lang']}): {document['bytes']:,} bytes, {document['tokens']:,} tok"
            in said
        )
        assert "│".join(document["pieces"][:20]).split("\n")[0] in said
    assert seen["picture"] in said


def test_timeouts_are_given_whole(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("cells: 2\nworkers_per_cell: 1\nsteps: 4\nworkload: {path: 'tests.support.toy:Toy'}\n")
    rows = figures("train", str(job), "--explain-timeouts")["timeouts"]
    said = words("train", str(job), "--explain-timeouts")
    assert [f"{row['seconds']:8.2f} s  {row['name']:12} {row['meaning']}" for row in rows] == said.splitlines()[
        : len(rows)
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "neither --input nor --dataset"),
        (["--input", "a", "--revision", "v1"], "--config and --revision are of a --dataset"),
        (["--dataset", "https://x"], "no name of a data set"),
    ],
)
def test_input_that_is_not_named_is_refused(options: list[str], message: str, tmp_path: Path) -> None:
    argv = ["data", "tokenize", "--tokenizer", "t.json", "--out", str(tmp_path / "o"), *options]
    done = CliRunner().invoke(app, argv)
    assert isinstance(done.exception, UserError)
    assert message in done.exception.problem
