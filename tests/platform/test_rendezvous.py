"""Meeting, and the exchange of keys, as the controller answers them: a membership at a time, for its members only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from shoal.control import rendezvous
from shoal.control.rendezvous import Answers, Rendezvous, Table
from shoal.protocol.rendezvous import Answer, Closed, Meet, Met, Put, Question, Turn, Values, Want

A, B = "generation/5", "cell/0/2"


class Listed(Rendezvous):
    """Makes all answers at once."""

    def open(self, subject: str, number: int, members: Iterable[str]) -> list[tuple[str, Answer]]:
        return list(super().open(subject, number, members))

    def hear(self, worker: str, asked: Question) -> list[tuple[str, Answer]]:
        return list(super().hear(worker, asked))


def opened() -> Listed:
    one = Listed()
    assert one.open("generation", 5, ["w0", "w1", "w2"]) == []
    assert one.open("cell/0", 2, ["w0", "w1"]) == []
    return one


def want(scope: str, id: int, *keys: str) -> Want:
    return Want(scope, id, keys)


def meet(id: int, *, scope: str = A, turn: bool = False, key: str = "all", size: int = 3) -> Meet | Turn:
    return (Turn if turn else Meet)(scope, id, key, size)


def met(answers: Answers) -> dict[str, tuple[int, bool]]:
    return {worker: (answer.id, answer.go) for worker, answer in answers if isinstance(answer, Met)}


def test_values_are_answered_when_all_are_there() -> None:
    one = opened()
    assert one.hear("w0", Put(A, "k", "v")) == []
    assert one.hear("w1", want(A, 1, "k")) == [("w1", Values(1, ("v",)))]
    assert one.hear("w1", want(A, 2, "l", "k", "m")) == []
    assert one.hear("w2", want(A, 9, "m")) == []
    assert one.hear("w0", Put(A, "l", "u")) == []
    assert one.hear("w0", Put(A, "m", "w")) == [
        (
            "w1",
            Values(
                2,
                (
                    "u",
                    "v",
                    "w",
                ),
            ),
        ),
        ("w2", Values(9, ("w",))),
    ]
    assert one.hear("w0", Put(A, "m", "again")) == []


def test_memberships_share_no_keys() -> None:
    one = opened()
    one.hear("w0", Put(B, "k", "v"))
    assert one.hear("w0", want(A, 1, "k")) == []
    assert one.hear("w1", Put(A, "k", "another")) == [("w0", Values(1, ("another",)))]


def test_all_go_in_once_all_have_come() -> None:
    one = opened()
    assert one.hear("w0", meet(1)) == one.hear("w2", meet(2)) == []
    assert met(one.hear("w1", meet(3))) == {"w0": (1, True), "w2": (2, True), "w1": (3, True)}
    assert met(one.hear("w0", meet(4, turn=True))) == {"w0": (4, True)}, "what was decided stays"


def test_the_first_that_turns_round_decides_for_all() -> None:
    one = opened()
    assert one.hear("w0", meet(1)) == one.hear("w2", meet(2)) == []
    assert met(one.hear("w0", meet(3, turn=True))) == {"w0": (3, False), "w2": (2, False)}
    assert met(one.hear("w1", meet(1))) == {"w1": (1, False)}
    assert one.hear("w1", meet(2, key="another")) == []


def test_what_is_over_is_answered_and_forgotten() -> None:
    one = opened()
    one.hear("w0", Put(A, "k", "v"))
    one.hear("w1", want(A, 1, "l"))
    one.hear("w2", meet(2))
    assert one.open("generation", 6, ["w1", "w2"]) == [
        ("w1", Closed(1)),
        ("w2", Closed(2)),
    ]
    assert one.hear("w1", want(A, 3, "k")) == [("w1", Closed(3))]
    assert one.hear("w1", Put(A, "k", "v")) == []
    assert one.hear("w1", meet(4)) == [("w1", Closed(4))]
    assert met(one.hear("w1", meet(5, turn=True))) == {"w1": (5, False)}
    assert one.hear("w1", want("generation/6", 6, "k")) == []
    assert one.hear("w0", Put(B, "k", "v")) == one.hear("w1", meet(1, scope=B, size=2)) == [], "others are as they were"


@pytest.mark.parametrize("scope", [B, "cell/0/3", "cell/1/2", "generation", "", "generation/5/x"])
def test_who_is_no_member_changes_nothing(scope: str) -> None:
    one = opened()
    assert one.hear("w2", Put(scope, "k", "evil")) == []
    assert one.hear("w2", meet(1, scope=scope, size=2)) == [("w2", Closed(1))]
    assert met(one.hear("w2", meet(2, scope=scope, size=2, turn=True))) == {"w2": (2, False)}
    assert one.hear("w0", want(B, 1, "k")) == []
    assert one.hear("w0", meet(2, scope=B, size=2)) == []
    assert met(one.hear("w1", meet(3, scope=B, size=2))) == {"w0": (2, True), "w1": (3, True)}


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "KEYS", 3)
    monkeypatch.setattr(rendezvous, "VALUES", 100)
    one = opened()
    with pytest.raises(ValueError, match=A):
        one.hear("w0", Put(A, "k", "v" * 101))
    for key in "abc":
        one.hear("w0", Put(A, key, "v"))
    with pytest.raises(ValueError, match="too many"):
        one.hear("w0", Put(A, "d", "v"))
    assert one.hear("w0", Put(B, "d", "v" * 100)) == []


def test_who_meets_is_told_what_the_others_brought() -> None:
    one = opened()
    assert one.hear("w2", want(A, 9, "k")) == []
    assert one.hear("w0", Meet(A, 1, "all", 3, ("l", "k"), (("k", "v"),))) == [("w2", Values(9, ("v",)))]
    assert one.hear("w1", Meet(A, 2, "all", 3, ("k", "nobody's"), (("l", "u"), ("m", "w")))) == []
    assert one.hear("w2", Meet(A, 3, "all", 3)) == [
        ("w0", Met(1, True, (("l", "u"), ("k", "v")))),
        ("w1", Met(2, True, (("k", "v"),))),
        ("w2", Met(3, True)),
    ]


def test_who_turns_round_ends_a_meeting_without_a_word_of_what_was_brought() -> None:
    one = opened()
    one.hear("w0", Meet(A, 1, "all", 3, ("k",), (("k", "v"),)))
    assert one.hear("w1", meet(2, turn=True)) == [("w0", Met(1, False)), ("w1", Met(2, False))]


class Walked(dict[str, Meet | Turn]):
    """Counts how often it is looked through."""

    walks = 0

    def __iter__(self) -> Iterator[str]:
        self.walks += 1
        return super().__iter__()

    def items(self) -> Any:
        self.walks += 1
        return super().items()


def test_who_comes_to_a_meeting_is_not_held_up_by_those_who_wait_there() -> None:
    one, crowd = Rendezvous(), [f"w{index}" for index in range(100)]
    one.open("generation", 5, crowd)
    came = Walked()
    one._rooms["generation"].tables["all"] = Table(100, came)
    answers = [one.hear(worker, meet(1, size=100)) for worker in crowd]
    assert came.walks == 1
    assert [list(answer) for answer in answers[:-1]] == [[]] * 99
    assert met(answers[-1]) == dict.fromkeys(crowd, (1, True))
