"""A training thread that nothing wakes is left behind, and changes nothing when something does."""

from __future__ import annotations

import threading

from shoal.worker.groups import Stopped
from shoal.worker.thread import TrainingThread

WORLD, ANOTHER = "the cell's world", "another"


def test_another_thread_goes_on_and_the_first_ends_when_it_wakes() -> None:
    inside, wake, second = threading.Event(), threading.Event(), threading.Event()
    ends: list[str] = []

    def serve() -> None:
        if inside.is_set():
            second.set()
            return
        try:
            with thread.inside(WORLD):
                inside.set()
                wake.wait()
                raise RuntimeError("the timeout of its group")
        except Stopped:
            ends.append("current" if thread.current() else "left behind")

    thread = TrainingThread(serve, patience=0.0)
    first = threading.Thread(target=thread.begin)
    first.start()
    inside.wait()
    assert not thread.leave_behind(ANOTHER)
    thread.release(WORLD)
    second.wait()
    wake.set()
    first.join()
    assert ends == ["left behind"]


def test_who_has_come_out_is_not_left_behind() -> None:
    def serve() -> None:
        with thread.inside(WORLD):
            served.append(threading.current_thread())

    served: list[threading.Thread] = []
    thread = TrainingThread(serve, patience=0.0)
    thread.begin()
    assert not thread.leave_behind(WORLD)
    assert served == [threading.current_thread()]
