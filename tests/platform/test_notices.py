"""What people outside are told of a run: in how many messages, by real hooks, and never with a secret."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shoal.config import Job, parse
from shoal.control.notifier import Notifier
from shoal.decisions.notices import LINES, Gathered, Message, checkpoint_overdue
from shoal.hooks import Command, HookFailed, Webhook, check
from shoal.record import layout
from shoal.record.jsonl import read_json
from shoal.record.masking import mask_text
from shoal_core.errors import UserError
from tests.support.lab import hurry, lab

ALL = frozenset({"run_ended", "recovery", "no_progress", "nodes_set_aside", "checkpoint_overdue"})
SECRET, TOKEN = "T0SECRET/B0SECRET", "to-k-en-hunter2"


def recovery(number: int = 1) -> dict[str, Any]:
    return {"kind": "recovery", "time": float(number), "sentence": f"Recovery {number} is over."}


ENDED = {"kind": "run_ended", "time": 9.0, "status": "done", "reason": "every step is committed"}


# ---- how many messages


def test_the_first_is_told_at_once_and_a_burst_is_one_message_with_every_count() -> None:
    one = Gathered(ALL, wait=60.0)
    assert not one.due(0.0)
    one.take(recovery())
    assert one.due(0.0)
    first = one.message(0.0)
    assert first == Message({"recovery": 1}, (recovery(),), 1)
    for number in range(2, 40):
        one.take(recovery(number))
    one.take({"kind": "node_aside", "time": 1.0, "node": "n1"})
    one.take({"kind": "death", "time": 1.0})  # nobody is told of it
    assert not one.due(59.9)
    assert one.due(60.0)
    burst = one.message(60.0)
    assert burst is not None
    assert burst.counts == {"recovery": 38, "nodes_set_aside": 1}
    assert (len(burst.events), burst.events[-1]["kind"], burst.number) == (LINES, "node_aside", 40)
    assert not one.due(1e9)


def test_the_end_waits_for_nothing_and_takes_along_what_waited() -> None:
    one = Gathered(ALL, wait=60.0)
    one.take(recovery(1))
    one.message(0.0)
    one.take(recovery(2))
    one.take(ENDED)
    assert one.due(0.1)
    assert one.message(0.1) == Message({"recovery": 1, "run_ended": 1}, (recovery(2), ENDED), 3)


def test_what_could_not_be_told_goes_with_the_next_after_pauses_that_grow() -> None:
    one, now, tried = Gathered(ALL, wait=60.0), 0.0, list[float]()
    one.take(recovery(1))
    for number in range(2, 12):
        while not one.due(now):
            now += 1.0
        tried.append(now)
        message = one.message(now)
        assert message is not None
        one.take(recovery(number))  # while it is being told
        one.failed(message, now)
    assert [after - before for before, after in itertools.pairwise(tried)][:3] == [120.0, 240.0, 480.0]
    assert max(after - before for before, after in itertools.pairwise(tried)) == 3600.0
    message = one.message(now)
    assert message is not None
    assert message.counts == {"recovery": 11}
    assert [event["time"] for event in message.events] == [float(number) for number in range(1, 12)]


def test_only_what_is_chosen_is_told() -> None:
    one = Gathered(frozenset({"run_ended"}), wait=0.0)
    one.take(recovery())
    assert not one.due(1e9)
    one.take(ENDED)
    assert one.due(0.0)


@pytest.mark.parametrize(
    ("every", "limit", "steps", "seconds", "overdue"),
    [(100, None, 199, 1e6, False), (100, None, 200, 0.0, True), (0, None, 10**6, 1e6, False),
     ("auto", None, 10**6, 3600.0, False), ("auto", None, 1, 3600.1, True), (100, 5.0, 1, 5.1, True),
     (100, 5.0, 10**6, 5.0, False)],
)  # fmt: skip
def test_when_a_checkpoint_is_overdue(
    every: Any, limit: float | None, steps: int, seconds: float, overdue: bool
) -> None:
    assert checkpoint_overdue(every, limit, steps, seconds) is overdue


# ---- the controller's side, with hooks and a clock that are not real


class Told:
    """A hook that fails as often as it is told to."""

    name = "webhook"

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.said = failures, list[dict[str, Any]]()

    def tell(self, said: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise HookFailed("it answered 500")
        self.said.append(dict(said))


class Scene:
    """A notifier, its journal, and its clock."""

    def __init__(self, hook: Told, start: int = 0, **settings: Any) -> None:
        notify = {"url_env": "X", "wait_s": 10.0, **settings}
        job = Job.model_validate({"run_id": "a", "steps": 9, "notify": notify, "workload": {}})
        self.now, self.journal = 0.0, list[dict[str, Any]]()
        self.one = Notifier(job, start, self.event, [hook], lambda: self.now)

    def event(self, kind: str, **fields: Any) -> None:
        self.journal.append({"kind": kind, "time": self.now, **fields})
        self.one.event(self.journal[-1])

    def look(self, seconds: float = 1.0) -> None:
        self.now += seconds
        asyncio.run(self.one.look())
        for thread in threading.enumerate():
            if thread.name == "webhook":
                thread.join(60)

    def kinds(self) -> list[str]:
        return [line["kind"] for line in self.journal]


def test_a_hook_that_fails_is_on_record_once_and_nothing_is_left_out() -> None:
    hook = Told(failures=3)
    scene = Scene(hook)
    scene.event("recovery", sentence="Node n1 died.")
    for _ in range(400):
        scene.look()
    assert scene.kinds().count("notify_failed") == 1
    assert scene.kinds()[-1] == "notified"
    assert [said["text"] for said in hook.said] == ["a: Node n1 died."]
    hook.failures = 1
    scene.event("recovery", sentence="Node n2 died.")
    for _ in range(60):
        scene.look()
    assert scene.kinds().count("notify_failed") == 2  # it had worked since
    assert len(hook.said) == 2


def test_what_stands_still_is_told_once_and_again_after_it_went_on() -> None:
    hook = Told()
    scene = Scene(hook, start=4, no_progress_s=30.0)
    for _ in range(100):
        scene.look()
    assert scene.kinds() == ["no_progress", "notified"]
    assert scene.journal[0]["step"] == 4
    scene.one.step({"step": 4})
    for _ in range(100):
        scene.look()
    assert scene.kinds().count("no_progress") == 2
    for step in range(5, 300):
        scene.one.step({"step": step})
        scene.look()
    assert scene.kinds().count("no_progress") == 2
    assert [line["last"] for line in scene.journal if line["kind"] == "checkpoint_overdue"] == [4]
    scene.event("checkpoint", step=300)
    for step in range(300, 499):
        scene.one.step({"step": step})
        scene.look()
    assert scene.kinds().count("checkpoint_overdue") == 1


def test_a_controller_that_takes_over_tells_what_the_one_before_did_not() -> None:
    first, second = Told(), Told()
    before = Scene(first)
    before.event("run_started", run_id="a")
    before.event("recovery", sentence="One.")
    before.look()
    before.look()
    before.event("recovery", sentence="Two.")  # it waits for its turn when the controller dies
    before.look()
    after = Scene(second, no_progress_s=30.0)
    after.one.again(before.journal, committed=7)
    after.event("recovery", sentence="Three.")
    after.look()
    assert [said["text"] for said in first.said] == ["a: One."]
    assert [said["text"] for said in second.said] == ["a: recovery 2 x\nTwo.\nThree."]
    after.look(40.0)
    assert [line["step"] for line in after.journal if line["kind"] == "no_progress"] == [7]
    later = Scene(Told())
    session = {"kind": "run_started", "time": 1.0}
    later.one.again([*before.journal, session], committed=7)  # another session: that is all told
    later.look()
    assert later.kinds() == []


def test_the_end_is_told_though_the_hook_was_just_used_and_a_slow_one_is_left() -> None:
    hook = Told()
    scene = Scene(hook)
    scene.event("recovery", sentence="One.")
    scene.look()
    scene.event(**{"kind": "run_ended", "status": "failed", "reason": "no slots"})
    scene.one.close()
    assert hook.said[-1]["counts"] == {"run_ended": 1}
    assert hook.said[-1]["text"] == "a: The run ended (failed): no slots."

    release = threading.Event()

    class Slow(Told):
        def tell(self, said: Any) -> None:
            release.wait(60)

    stuck = Scene(Slow(), timeout_s=0.05)
    stuck.event(**{"kind": "run_ended", "status": "done", "reason": ""})
    stuck.one.close()  # comes back
    release.set()


# ---- real hooks


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with the code that the path ends in."""

    posted: ClassVar[list[tuple[str, str | None, Any]]] = []
    hold = threading.Event()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.posted.append((self.path, self.headers["Authorization"], body))
        code = int(self.path.rpartition("/")[2])
        if code == 0:
            self.hold.wait(60)
            return
        self.send_response(code)
        if code == 307:
            self.send_header("Location", "/elsewhere/200")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Server.posted.clear()
    Server.hold.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as one:
        threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{one.server_address[1]}/services/{SECRET}"
        Server.hold.set()
        one.shutdown()


def test_a_webhook_is_posted_what_slack_takes(server: str) -> None:
    Webhook(f"{server}/200", TOKEN, 60.0).tell({"text": "a & b <!channel>", "events": [1]})
    assert Server.posted == [
        (f"/services/{SECRET}/200", f"Bearer {TOKEN}", {"text": "a &amp; b &lt;!channel&gt;"}),
    ]


@pytest.mark.parametrize(
    ("path", "why"),
    [("/404", "it answered 404"), ("/307", "it answered 307"), ("/0", "it did not answer within 0.2 s"),
     ("/a b/200", "InvalidURL"), ("nobody", "Connection refused")],
)  # fmt: skip
def test_why_a_webhook_failed_names_no_secret(server: str, path: str, why: str) -> None:
    address = f"http://127.0.0.1:1/services/{SECRET}" if path == "nobody" else server + path
    hook = Webhook(address, TOKEN, 0.2 if path == "/0" else 60.0)
    with pytest.raises(HookFailed) as caught:
        hook.tell({"text": "x"})
    assert str(caught.value) == why
    shown = f"{hook!r} {caught.value!r} {caught.value.__cause__!r}"
    assert SECRET not in shown
    assert TOKEN not in shown
    assert len(Server.posted) <= 1  # a redirection is not followed


def test_a_command_gets_json_and_nothing_is_made_of_its_words(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = "import sys; open(sys.argv[1], 'w').write(sys.argv[2] + sys.stdin.read())"
    words = (sys.executable, "-c", code, str(out), "$(touch owned); ${HOME}\n")
    Command(words, 60.0).tell({"text": "`touch owned` $(touch owned)", "counts": {"recovery": 2}})
    first, second = out.read_text().splitlines()
    assert first == "$(touch owned); ${HOME}"
    assert json.loads(second) == {"text": "`touch owned` $(touch owned)", "counts": {"recovery": 2}}


def test_a_command_that_fails_or_hangs_is_ended_with_all_that_it_began(tmp_path: Path) -> None:
    with pytest.raises(HookFailed, match=r"^it ended with code 3$"):
        Command(("sh", "-c", "echo $SECRET >&2; exit 3"), 60.0).tell({})
    with pytest.raises(HookFailed, match=r"^/nowhere/at-all cannot be started"):
        Command(("/nowhere/at-all",), 60.0).tell({})
    child = tmp_path / "child"
    with pytest.raises(HookFailed, match=r"^it took longer than 2 s"):
        Command(("sh", "-c", f"sleep 600 & echo $! > {child}; wait"), 2.0).tell({})
    status = Path(f"/proc/{child.read_text().strip()}/stat")
    with contextlib.suppress(FileNotFoundError):
        while status.read_text().split()[2] not in "ZX":  # it was told to end
            time.sleep(0.01)


# ---- the job


@pytest.mark.parametrize(
    ("settings", "problem"),
    [({}, "names nobody to tell"), ({"url": "https://x/y"}, "unknown key 'notify.url', did you mean 'notify.url_env'"),
     ({"url_env": "https://hooks.slack.com/services/T0/B0"}, "'notify.url_env'"),
     ({"command": ["x"], "on": ["all"]}, "'notify.on"),
     ({"command": ["curl", "-H", "Authorization: Bearer abcdef"]}, "looks like a credential"),
     ({"command": ["x", "a\0b"]}, "NUL character"),
     ({"command": ["x"], "token_env": "A"}, "token_env is sent to url_env")],
)  # fmt: skip
def test_what_is_wrong_with_the_section_is_named(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(Job, {"steps": 1, "workload": {}, "notify": settings}, source="job.yaml")
    assert problem in str(caught.value)
    assert "abcdef" not in str(caught.value)
    assert mask_text(str(caught.value)) == str(caught.value)  # nothing in it looks like a credential itself


def test_what_the_environment_lacks_is_said_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job.model_validate({"steps": 1, "workload": {}, "notify": {"url_env": "SHOAL_T_URL"}})
    monkeypatch.delenv("SHOAL_T_URL", raising=False)
    with pytest.raises(UserError, match="the environment has no SHOAL_T_URL"):
        check(job.notify)
    monkeypatch.setenv("SHOAL_T_URL", f"hooks.slack.com/{SECRET}")
    with pytest.raises(UserError, match="SHOAL_T_URL holds is no address") as caught:
        check(job.notify)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "token", "name"),
    [("https://h:port/x", "t", "SHOAL_T_URL"), ("https://h/\xe9", "t", "SHOAL_T_URL"),
     ("https://h/x", f"{SECRET}\n", "SHOAL_T_TOKEN"), ("https://h/x", f"\u2019{SECRET}", "SHOAL_T_TOKEN")],
)  # fmt: skip
def test_what_no_request_can_hold_is_said_before_the_start(
    monkeypatch: pytest.MonkeyPatch, url: str, token: str, name: str
) -> None:
    settings = {"url_env": "SHOAL_T_URL", "token_env": "SHOAL_T_TOKEN"}
    job = Job.model_validate({"steps": 1, "workload": {}, "notify": settings})
    monkeypatch.setenv("SHOAL_T_URL", url)
    monkeypatch.setenv("SHOAL_T_TOKEN", token)
    with pytest.raises(UserError, match=f"what {name} holds is no") as caught:
        check(job.notify)
    assert SECRET not in str(caught.value)


# ---- a run


def test_a_run_tells_of_its_recovery_and_its_end_and_no_secret_stays(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is killed, then the controller; the webhook works, the command does not."""
    monkeypatch.setenv("SHOAL_T_URL", f"{server}/200")
    monkeypatch.setenv("SHOAL_T_TOKEN", TOKEN)
    notify = {"url_env": "SHOAL_T_URL", "token_env": "SHOAL_T_TOKEN", "command": ["/nowhere"], "wait_s": 0.0}
    with lab(tmp_path, {"n0": 2, "n1": 2, "n2": 2}, steps=400, cells=2, workers_per_cell=2, notify=notify) as one:
        one.full(3, spares=2)
        one.until(lambda: set((read_json(one.path / layout.STATUS) or {}).get("nodes", {})) == set(one.alive))
        one.kill(one.members(1)[0])
        one.until(lambda: one.events("notified"))
        one.kill_controller()
        one.until(lambda: one.events("controller_back"))
        hurry(one)
        summary = one.finished()
        one.until(lambda: any("run ended" in body["text"] for _, _, body in Server.posted))
        assert (summary["status"], summary["steps_lost"]) == ("done", 0)
    texts = [body["text"] for _, _, body in Server.posted]
    assert all(token == f"Bearer {TOKEN}" for _, token, _ in Server.posted)
    assert sum("healed" in text for text in texts) == 1, texts
    assert sum("The run ended (done)" in text for text in texts) == 1, texts
    failed = one.events("notify_failed")
    assert {event["channel"] for event in failed} == {"command"}
    assert 1 <= len(failed) <= 2  # once each controller
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and os.access(path, os.R_OK)]
    assert len(kept) > 5
    for path in kept:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert TOKEN.encode() not in content, path
