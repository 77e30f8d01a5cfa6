"""What ends a command is one message and an exit code; only faults of this software show a traceback. And what its help
says is shown."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from shoal.cli import main
from shoal.cluster import connect, inside
from shoal.cluster.processes import MARK
from shoal_core.errors import StoreError, UserError


def raising(error: BaseException) -> Callable[[], None]:
    def app() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("odd", "mend it"), 2, "shoal: odd\n  remedy: mend it\n"),
        (StoreError("s3://b/a: SlowDown", "wait"), 2, "shoal: s3://b/a: SlowDown\n  remedy: wait\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 2, "shoal: /x/y: No space left on device\n  rem"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "shoal: /x: Permission denied\n  remedy: "),
        (OSError(errno.EMFILE, "Too many open files"), 2, "ulimit -n"),
        (MemoryError(), 2, "shoal: not enough memory"),
        (SystemExit(130), 130, "shoal: interrupted\n"),
        (SystemExit(1), 1, ""),
    ],
)
def test_each_end_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, words: str
) -> None:
    monkeypatch.setattr(main, "app", raising(error))
    with pytest.raises(SystemExit) as end:
        main.run()
    said = capsys.readouterr().err
    assert end.value.code == code
    assert words in said
    assert bool(words) == bool(said)


def test_the_state_of_ray_is_one_message_and_faults_are_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray.exceptions import ActorDiedError, RayTaskError

    monkeypatch.setattr(main, "app", raising(ActorDiedError()))
    with pytest.raises(SystemExit, match="2"):
        main.run()
    assert "shoal: Ray failed: The actor died" in capsys.readouterr().err
    fault = RayTaskError("work", "Traceback ...", ZeroDivisionError())
    for error in (ZeroDivisionError(), fault):
        monkeypatch.setattr(main, "app", raising(error))
        with pytest.raises(type(error)):
            main.run()


def test_a_reader_that_goes_away_and_a_full_disk_leave_no_traceback(tmp_path: Path) -> None:
    """`shoal ... | head`, with the real command."""
    shoal = Path(sys.executable).with_name("shoal")
    command = f"{shoal} data --help | head -c 1; exec {shoal} data --help > /dev/full"
    ended = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, check=False, cwd=tmp_path)
    assert b"Traceback" not in ended.stderr


def test_a_shell_outside_goes_into_the_cluster_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class State:
        gcs_address = "10.77.0.2:6379"

    ran: list[list[str]] = []

    def execute(name: str, argv: list[str]) -> int:
        ran.append([name, *argv])
        return 7

    monkeypatch.setattr(inside, "known_clusters", lambda: ["mine"])
    monkeypatch.setattr(inside, "load", lambda name: State())
    monkeypatch.setattr(connect, "execute", execute)
    monkeypatch.setattr(sys, "argv", ["shoal", "data", "tokenize"])
    monkeypatch.setenv("RAY_ADDRESS", "10.77.0.2:6379")
    monkeypatch.delenv(MARK, raising=False)
    monkeypatch.setenv("SHOAL_CLUSTER", "mine")
    with pytest.raises(SystemExit, match="7"):
        inside.go_inside()
    assert ran == [["mine", sys.executable, "shoal", "data", "tokenize"]]
    for name, value in ((MARK, "mine/head"), ("RAY_ADDRESS", "elsewhere:6379"), ("SHOAL_CLUSTER", "theirs")):
        with monkeypatch.context() as other:
            other.setenv(name, value)
            inside.go_inside()
    assert len(ran) == 1
    assert os.environ["SHOAL_CLUSTER"] == "mine"


def test_no_help_text_has_square_brackets_which_are_taken_for_markup_and_not_shown() -> None:
    def texts(command: Any) -> Iterator[str]:
        yield from filter(None, [command.help, command.epilog, *(getattr(one, "help", "") for one in command.params)])
        for inner in getattr(command, "commands", {}).values():
            yield from texts(inner)

    found = list(texts(get_command(main.app)))
    assert len(found) > 100
    assert [text for text in found if "[" in text] == []
