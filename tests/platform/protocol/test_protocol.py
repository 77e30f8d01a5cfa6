"""The commit protocol, searched exhaustively with the controller's real decisions (docs/commit-protocol.md)."""

from __future__ import annotations

import pytest

from shoal.decisions.decide import decide
from tests.platform.protocol.support.actors import Violation
from tests.platform.protocol.support.aimed import Aimed
from tests.platform.protocol.support.model import Model, Rule
from tests.platform.protocol.support.mutants import (
    BegunAlone,
    CommitAfterAnswer,
    ForgottenCommit,
    ForgottenShape,
    KeptToItself,
    LateWord,
    LetGo,
    MetAlone,
    NoVote,
    TrustedRecord,
    decide_too_early,
    fenced_but_not_lost,
    late_commit_not_ordered,
    never_back,
    never_pieced,
    stays_behind,
)
from tests.platform.protocol.support.search import explore
from tests.platform.protocol.support.shapes import taking


def test_without_faults_every_order_of_moves_ends_in_the_same_state() -> None:
    found = explore(Model((), spares=1, orders="all"))
    assert dict(found.ends) == {"done": 1}
    assert found.states > 300


@pytest.mark.parametrize(
    ("faults", "spares", "steps"),
    [
        pytest.param(("crash",), 0, 2, marks=pytest.mark.long),
        (("crash",), 0, 1),
        (("cut",), 0, 1),
        (("still",), 0, 2),
        (("restart",), 0, 2),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value),
)
def test_one_fault_at_any_moment(faults: tuple[str, ...], spares: int, steps: int) -> None:
    """Every move of every worker as the moment of a fault, then every path of what follows."""
    found = explore(Model(faults, spares=spares, steps=steps, orders="few"))
    assert found.states > 10_000
    assert set(found.ends) == {"done"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("faults", "spares", "steps"),
    [
        (("still",), 1, 1),
        (("crash", "still"), 0, 1),
        (("crash",), 0, 1),
        (("crash",), 1, 1),
        (("glitch",), 0, 2),
        (("cut",), 1, 1),
        (("drain",), 1, 2),
        (("drain",), 2, 1),
        (("arrive", "crash"), 0, 1),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value),
)
def test_one_fault_in_every_order(faults: tuple[str, ...], spares: int, steps: int) -> None:
    """The same with nothing left out before the fault or during the stop: up to two minutes of a core each
    (`crash-still`: 1.4 million states)."""
    found = explore(Model(faults, spares=spares, steps=steps))
    assert found.states > 10_000
    assert set(found.ends) == {"done"}


@pytest.mark.long
@pytest.mark.parametrize("fault", ["crash", "still", "drain"])
def test_a_controller_is_replaced_at_any_moment_of_a_recovery(fault: str) -> None:
    """Before a fault, in its stop, in what follows; with all, some or none of its last orders."""
    found = explore(Model((fault, "restart"), spares=0, steps=1, orders="few"))
    assert set(found.ends) == {"done"}


SHAPES = {"one of three": taking({3: (1, 3)}), "three of one": taking({3: (3, 1)})}
"""What three living workers of four become."""
LARGEST = taking({3: (1, 3), 2: (1, 2), 1: (1, 1)})
"""One cell of all that live."""


@pytest.mark.parametrize("shape", SHAPES)
def test_one_death_and_the_living_take_another_shape(shape: str) -> None:
    """After the death of any worker at any of its moves the three others train in another shape."""
    found = explore(Model(("crash",), spares=0, steps=1, orders="few", choose=SHAPES[shape]))
    assert found.states > 40_000
    assert set(found.ends) == {"done"}


@pytest.mark.parametrize("second", ["crash", "cut", "still", "restart"])
@pytest.mark.parametrize("shape", SHAPES)
def test_another_fault_on_the_way_to_another_shape(shape: str, second: str) -> None:
    """At every move while cells of the other shape are formed, filled and begin. No step is taken back while the living
    hold every shard of one of the two shapes (I7)."""
    found = explore(Aimed(("crash", second), spares=0, steps=1, orders="few", choose=SHAPES[shape]))
    assert found.states > 1_000
    assert set(found.ends) == {"done"}


@pytest.mark.parametrize("second", ["crash", "still", "restart", pytest.param("cut", marks=pytest.mark.long)])
def test_what_is_left_of_two_shapes_is_put_together(second: str) -> None:
    """No step is taken back either while shards of both together are all of the state: cells of one more shape are
    filled from them."""
    found = explore(Aimed(("crash", second), spares=0, steps=1, orders="few", choose=LARGEST))
    assert found.states > 1_000
    assert set(found.ends) == {"done"}


@pytest.mark.long
@pytest.mark.parametrize("also", ["crash", "restart"])
def test_two_faults_on_the_way_to_another_shape(also: str) -> None:
    """One may strike while cells are put together of what the other left, or at another controller that knows of the
    former shape by the record and by who keeps shards of it."""
    found = explore(Aimed(("crash", "crash", also), spares=0, steps=1, orders="few", choose=LARGEST))
    assert found.states > 20_000
    assert set(found.ends) == {"done"}


@pytest.mark.parametrize("second", [(), ("still",), ("restart",), ("arrive",)], ids="-".join)
def test_a_run_that_has_too_few_workers_for_a_cell_takes_a_smaller_shape(second: tuple[str, ...]) -> None:
    """One of the two workers of the only cell dies at any moment: the other goes on alone, from the checkpoint."""
    found = explore(Model(("crash", *second), spares=0, cells=1, steps=1, orders="few", choose=LARGEST))
    assert set(found.ends) == {"done"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("shape", "second"),
    [
        ("three of one", "crash"),
        *(("one of three", second) for second in ("crash", "cut", "still", "restart", "arrive")),
    ],
)
def test_a_second_fault_at_any_moment_of_a_change_of_shape(shape: str, second: str) -> None:
    """Before it, while cells of the other shape are formed and filled, while they begin. No step is taken back while
    the living hold every shard of one of the two shapes (I7)."""
    found = explore(Model(("crash", second), spares=0, steps=1, orders="few", choose=SHAPES[shape]))
    assert set(found.ends) == {"done"}


@pytest.mark.long
def test_two_deaths_at_any_moments() -> None:
    """The second anywhere: before the first, in its stop, in the recovery. A shard may be lost, never a run."""
    found = explore(Model(("crash", "crash"), spares=0, steps=1, orders="few"))
    assert set(found.ends) == {"done"}


BROKEN: dict[str, tuple[type[Model], Rule, tuple[str, ...], int, str]] = {
    "a commit is not told to laggards": (Model, late_commit_not_ordered, ("crash",), 1, "I6"),
    "laggards stay behind": (Model, stays_behind, ("crash",), 1, "I1"),
    "answers are not awaited": (Model, decide_too_early, ("crash",), 1, "I"),
    "commit after the answer": (CommitAfterAnswer, decide, ("crash",), 1, "I4"),
    "no vote": (NoVote, decide, ("crash",), 1, "I"),
    "who is fenced is not lost": (Model, fenced_but_not_lost, ("cut",), 1, "I"),
    "a commit is kept to itself": (KeptToItself, decide, ("still",), 2, "I6"),
    "a commit is forgotten": (ForgottenCommit, decide, ("crash", "restart"), 1, "I3"),
    "the record is trusted": (TrustedRecord, decide, ("restart",), 1, "I"),
}
"""A model, its rule, faults and steps, and the invariant that does not hold."""


SLOW = "a commit is forgotten"
"""What takes longest to find."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name == SLOW else []) for name in BROKEN]
)
def test_a_broken_rule_is_found_out(name: str) -> None:
    kind, rule, faults, steps, invariant = BROKEN[name]
    model = kind(faults, spares=0, steps=steps, orders="few", rule=rule)
    with pytest.raises(Violation, match=f"^{invariant}"):
        explore(model, limit=500_000)


def test_what_is_left_of_two_shapes_and_not_put_together_is_found_out() -> None:
    with pytest.raises(Violation, match=r"^I7"):
        explore(Aimed(("crash", "crash"), spares=0, steps=1, orders="few", rule=never_pieced, choose=LARGEST))


def test_a_former_shape_that_another_controller_does_not_know_is_found_out() -> None:
    model = ForgottenShape(("crash", "crash", "restart"), spares=0, steps=1, orders="few", choose=LARGEST)
    with pytest.raises(Violation, match=r"^I7"):
        explore(model, limit=100_000)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "rule"), [(Model, never_back), (LetGo, decide)], ids=["never back", "let go"])
def test_a_former_shape_that_is_not_gone_back_to_is_found_out(kind: type[Model], rule: Rule) -> None:
    """Because the decisions do not, or because workers let its shards go as soon as they form another."""
    model = kind(("crash", "crash"), spares=0, steps=1, orders="few", rule=rule, choose=SHAPES["one of three"])
    with pytest.raises(Violation, match=r"^(I7|w)"):
        explore(model, limit=1_000_000)


@pytest.mark.long
def test_a_cell_that_begins_in_part_is_found_out() -> None:
    with pytest.raises(Violation, match=r"^I6"):
        explore(BegunAlone(("crash",), spares=0, steps=1, orders="few"))


@pytest.mark.long
def test_a_generation_that_is_met_in_part_is_found_out() -> None:
    with pytest.raises(Violation, match=r"^I6"):
        explore(MetAlone(("still", "still"), spares=0, steps=1, orders="few"))


def test_a_late_word_of_a_fenced_worker_must_not_be_read() -> None:
    with pytest.raises(Violation, match=r"^I[13]"):
        explore(LateWord(("cut",), spares=0, steps=1, orders="few"), limit=500_000)
