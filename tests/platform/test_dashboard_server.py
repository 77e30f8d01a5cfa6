"""The dashboard's server: who is answered, with what, and what is new as it comes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from shoal.dashboard import desk as desk_module
from shoal.dashboard import document as document_module
from shoal.dashboard import server as serving_module
from shoal.dashboard.desk import opened
from shoal.dashboard.document import SCRIPTS, document
from shoal.dashboard.server import MOST_RUNS, Server, is_loopback
from shoal.record import layout
from shoal.record.grip import take
from shoal.record.publish import Publisher
from shoal.record.rundir import RunDir
from shoal_core.errors import UserError
from shoal_core.store import join, open_store
from tests.platform.test_dashboard_views import line
from tests.platform.test_report_page import STEPS, demo_record
from tests.support.pages import News, ask, first_run, serving
from tests.support.published import empty_storage

__all__ = ["empty_storage"]

PARTS = Path(document_module.__file__).parent / "page"


def begun(storage: Path, name: str = "r") -> RunDir:
    run = RunDir.create(storage, name, {"note": "secret"}, resume=False)
    run.append_event("run_started", run_id=name, steps=9, cells=1, workers_per_cell=1)
    return run


def test_the_page_is_whole_and_only_its_own_parts_may_run_in_it(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        status, headers, page = ask(server, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:,|#)""", page)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    rules = dict(rule.strip().partition(" ")[::2] for rule in headers["Content-Security-Policy"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == "'none'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
    assert "Access-Control-Allow-Origin" not in headers


def test_nothing_of_a_record_becomes_markup() -> None:
    """The scripts set texts and attributes; none of what parses markup or code is in them."""
    script = document().partition("<script>")[2]
    assert all(part in script for part in ("textContent", "append"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|srcdoc", script)
    assert sorted(SCRIPTS) == sorted(file.name for file in PARTS.iterdir() if file.suffix == ".js")


@pytest.mark.parametrize(
    ("host", "code"),
    [("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("127.9.9.9", 200), ("LOCALHOST", 200),
     ("evil.example", 403), ("localhost.evil.example", 403), ("10.0.0.7", 403), ("[", 403), ("", 403)],
)  # fmt: skip
def test_a_name_that_was_made_to_lead_here_is_refused(tmp_path: Path, host: str, code: int) -> None:
    run = begun(tmp_path)
    with serving(run.path) as server:
        for path in ("/", "/runs", "/news?run=run0", "/../../etc/passwd"):
            status, _, text = ask(server, path, Host=host) if path != "/news?run=run0" or code != 200 else (200, {}, "")
            assert status == (404 if path.startswith("/..") and code == 200 else code)
            assert code == 200 or text == "r" or "run_id" not in text


def test_another_page_is_refused_but_may_lead_here(tmp_path: Path) -> None:
    with serving(begun(tmp_path).path) as server:
        asked = {
            path: ask(server, path, **{"Sec-Fetch-Site": "cross-site"})[0] for path in ("/", "/runs", "/news?run=run0")
        }
        assert asked == {"/": 200, "/runs": 403, "/news?run=run0": 403}
        assert ask(server, "/runs", **{"Sec-Fetch-Site": "same-origin"})[0] == 200


def test_elsewhere_than_on_loopback_the_token_is_needed(tmp_path: Path) -> None:
    with serving(tmp_path, "0.0.0.0") as server:
        assert server.token is not None
        assert f"?token={server.token}" in server.url
        for path in ("/", "/runs", "/news?run=run0", "/runs?token=", "/runs?token=wrong", "/runs?token=%C3%A4"):
            assert ask(server, path)[0] == 403
        assert ask(server, f"/runs?token={server.token}")[0] == 200
        assert ask(server, f"/runs?token={server.token}", Host="evil.example")[0] == 403
        assert ask(server, f"/runs?token={server.token}", Host="10.1.2.3:80")[0] == 200
    with serving(tmp_path) as server:
        assert server.token is None
        assert server.server_address[0] == "127.0.0.1"
    assert [is_loopback(host) for host in ("::1", "127.0.0.2", "localhost", "0.0.0.0", "host")] == [True] * 3 + [
        False
    ] * 2


def test_only_listed_runs_are_read_and_no_request_names_a_place(tmp_path: Path) -> None:
    storage, outside = tmp_path / "runs", tmp_path / "outside"
    begun(storage), begun(outside, "hidden")
    with serving(storage) as server:
        assert [run["name"] for run in json.loads(ask(server, "/runs")[2])["runs"]] == ["r"]
        for run in ("r", "../outside/hidden", str(outside / "hidden"), "run1", "", "run0&run=run1"):
            assert ask(server, f"/news?run={run}")[0] == 404
            assert ask(server, f"/curves?run={run}&first=0&last=1")[0] == 404
        for path in ("/r/config.yaml", "/..%2f..%2fetc/passwd", "//etc/passwd", "/runs/r", "/news", "/%00"):
            assert ask(server, path)[0] == 404
        many = "&".join(f"run=run{index}" for index in range(MOST_RUNS + 1))
        assert ask(server, f"/news?{many}")[0] == 404
        for window in ("", "first=1", "first=a&last=2", "first=5&last=4", "first=0&last=1e99", "first=nan&last=nan"):
            assert ask(server, f"/curves?run=run0&{window}")[0] == 400
        assert ask(server, "/runs?" + "&".join("a=b" for _ in range(99)))[0] == 400
        assert "secret" not in ask(server, "/runs")[2]


def test_a_storage_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "LISTED_S", -1.0)
    storage = tmp_path / "runs"
    begun(storage)
    desk = opened(str(storage), None)
    assert desk.runs()["problem"] is None
    storage.rename(tmp_path / "away")
    assert f"what is shown is old: {storage} was there and {storage} is not there" in desk.runs()["problem"]


def test_a_line_is_told_once_it_is_whole(tmp_path: Path) -> None:
    """Counted in messages: half a line is none, the other half makes one, and nothing is told twice."""
    run = begun(tmp_path)
    run.append_step(line(0, loss=5.0))
    with serving(run.path) as server:
        news = News(server, f"run={first_run(server)}&figure=loss")
        assert news.answer.getheader("Content-Type") == "text/event-stream; charset=utf-8"
        found = news.until("curves", "story")
        assert found["curves"]["of"] == {"loss": {"mean": [5.0]}}
        text = json.dumps(line(1, loss=4.0)) + "\n"
        steps = run.path / layout.STEPS
        with steps.open("a") as file:
            file.write(text[:20])
        run.append_event("evaluation", step=1, bpb=3.5)  # comes after, is told before
        found = news.until("heldout")
        assert found["heldout"] == {"bpb": [[1, 3.5]]}
        assert "curves" not in found
        with steps.open("a") as file:
            file.write(text[20:])
        found = news.until("curves")
        assert (found["curves"]["at"], found["curves"]["of"], found["head"]["step"]) == (
            1,
            {"loss": {"mean": [4.0]}},
            2,
        )
        run.truncate_steps(1)
        run.append_step(line(1, loss=9.0))
        found = news.next()
        while found["curves"]["count"] != 2 or found["curves"]["of"]["loss"]["mean"][-1] != 9.0:
            found = news.next()
        assert found["curves"]["at"] == 0
        news.close()


def test_what_a_record_says_acts_on_nothing(tmp_path: Path) -> None:
    run = demo_record(tmp_path)
    run.append_event(
        "node_aside", node="<img src=x onerror=alert(1)>\x1b[2J\u202e", reason="it has s3://me:hunter2@host"
    )
    with serving(run.path) as server:
        news = News(server, f"run={first_run(server)}")
        text = json.dumps(news.until("curves", "story", "map"), ensure_ascii=False)
        news.close()
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "hunter2" not in text
    assert "<img src=x onerror=alert(1)>\\\\x1b[2J" in text


def test_several_runs_on_one_stream_and_one_that_is_damaged(tmp_path: Path) -> None:
    demo_record(tmp_path)
    damaged = begun(tmp_path, "other")
    (damaged.path / layout.STEPS).write_text("{}\n")
    with serving(tmp_path) as server:
        runs = {run["name"]: run["key"] for run in json.loads(ask(server, "/runs")[2])["runs"]}
        news = News(server, "&".join(f"run={key}" for key in runs.values()))
        found: dict[str, dict[str, Any]] = {key: {} for key in runs.values()}
        while "curves" not in found[runs["demo"]] or "problem" not in found[runs["other"]]:
            message = news.next()
            found[message["run"]] |= message
        news.close()
        assert found[runs["demo"]]["head"]["step"] == STEPS
        assert f"{layout.STEPS}:1 has no step number" in found[runs["other"]]["problem"]
        window = json.loads(ask(server, f"/curves?run={runs['demo']}&first=3&last=5&figure=loss")[2])
        assert window[runs["demo"]]["step"] == [3.0, 4.0, 5.0]


def test_callers_beyond_what_there_is_room_for_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_module, "MOST_CALLERS", 3)
    with serving(tmp_path) as server:
        where = ("127.0.0.1", server.server_address[1])
        held = [socket.create_connection(where, timeout=60) for _ in range(3)]
        with closing(socket.create_connection(where, timeout=60)) as one:
            assert one.recv(1) == b""
        for one in held:
            one.close()


def test_who_leaves_frees_the_run(tmp_path: Path) -> None:
    """Nobody reads a record that nobody looks at."""
    run = begun(tmp_path)
    with serving(run.path) as server:
        key = first_run(server)
        news = News(server, f"run={key}")
        news.until("story")
        watched = server.desk.watched(key)
        assert watched is not None
        assert watched.watchers == 1
        news.close()
        step = 0
        while watched.watchers:  # it is noticed when something is to be told
            run.append_step(line(step))
            step += 1
            time.sleep(0.05)


def test_a_run_on_a_store_is_brought_as_it_grows_and_never_written_to(empty_storage: str, tmp_path: Path) -> None:
    run = begun(tmp_path / "controller")
    publisher = Publisher(run.path, take(open_store(join(empty_storage, "r")), "session"))
    publisher.round()
    before = {entry.name for entry in open_store(empty_storage).list("")}
    with serving(empty_storage) as server:
        news = News(server, f"run={first_run(server)}")
        assert news.until("story")["head"]["step"] == 0
        assert {entry.name for entry in open_store(empty_storage).list("")} == before
        run.append_step(line(0))
        publisher.round()
        assert news.until("curves")["head"]["step"] == 1
        news.close()
    publisher.release()


def test_what_is_no_run_and_no_storage_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run"):
        opened(str(tmp_path / "nothing"), None)
    assert opened(str(tmp_path), None).runs()["runs"] == []
    with pytest.raises(UserError, match="cannot listen"):
        Server(opened(str(tmp_path), None), "203.0.113.1")


def test_the_command_prints_where_it_listens_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    run = begun(tmp_path)
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from shoal.cli.main import run; run()"
    )
    command = [sys.executable, "-c", script, "dashboard", str(run.path), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told["url"] == f"http://127.0.0.1:{told['port']}/"
        assert (told["run"], told["storage"]) == ("r", str(tmp_path))
        with closing(socket.create_connection(("127.0.0.1", told["port"]), timeout=60)):
            os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
