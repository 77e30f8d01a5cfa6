"""A pipeline's transfers arrive, and where they should, with tags and without: what NCCL's rules make of them."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from shoal_workloads.parallel.schedule import (
    LAYOUTS,
    Action,
    Line,
    Schedule,
    Step,
    Transfer,
    bounded,
    build,
    channels,
    needed_micro_batches,
    restrict,
    turns,
)
from tests.support.deliveries import by_line, by_tag, check_order, deliver, program


def sizes(name: str, pp: int) -> list[int]:
    """Numbers of micro-batches: the fewest, and some more than the pipeline holds."""
    least = needed_micro_batches(name, pp, 1)
    return sorted({least, needed_micro_batches(name, pp, least + 1), needed_micro_batches(name, pp, 2 * pp + 5)})


def ranks(name: str) -> list[int]:
    return [pp for pp in (2, 3, 4, 6, 9, 16) if name != "dualpipe" or pp % 2 == 0]


def travelling(schedule: Schedule) -> int:
    """How many transfers change ranks: of every micro-batch forward and backward."""
    hops = sum(
        schedule.rank_of(stage, micro_batch) != schedule.rank_of(stage + 1, micro_batch)
        for micro_batch in range(schedule.micro_batches)
        for stage in range(schedule.stages - 1)
    )
    return 2 * hops


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_transfer_of_every_schedule_arrives_where_it_should(name: str) -> None:
    """With gloo's tags, and with NCCL's orders, where a rank runs all operations of a group one after the other."""
    for pp in ranks(name):
        for micro_batches in sizes(name, pp):
            schedule = build(name, pp, micro_batches)
            programs = [list(program(turns(schedule, rank))) for rank in range(pp)]
            for rule in (by_tag, by_line(schedule)):
                found = deliver([iter(ops) for ops in programs], rule)
                assert not found.stuck, (pp, micro_batches)
                assert not found.wrong, (pp, micro_batches)
                assert found.transfers == travelling(schedule)


@pytest.mark.parametrize("name", LAYOUTS)
def test_micro_batches_that_are_not_there_leave_the_orders_whole(name: str) -> None:
    schedule = build(name, 4, needed_micro_batches(name, 4, 12))
    for present in ({0}, {1, 2, 5}, set(range(schedule.micro_batches - 1))):
        found = check_order(restrict(schedule, present), by_line(schedule))
        assert not found.stuck
        assert not found.wrong
        assert found.transfers


@pytest.mark.parametrize("name", ["zb1p", "zbv", "dualpipev", "dualpipe"])
def test_gradients_that_may_not_wait_change_nothing_that_travels(name: str) -> None:
    schedule = build(name, 8, needed_micro_batches(name, 8, 20))
    for most in (0, 2):
        found = check_order(bounded(schedule, most), by_line(schedule))
        assert not found.stuck
        assert not found.wrong
        assert found.transfers == travelling(schedule)


def a_pair(transfer: Transfer) -> Hashable:
    """One communicator for everything between two ranks, as torch's group has them."""
    return frozenset((transfer.line.source, transfer.line.target))


def a_direction(transfer: Transfer) -> Hashable:
    return transfer.line.source, transfer.line.target


def a_kind_each_way(transfer: Transfer) -> Hashable:
    """Four groups over the chain, each with one communicator, as torch's groups have that are made with the device."""
    return transfer.line.kind, transfer.line.source < transfer.line.target


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_communicator_a_pair_of_ranks_is_found_to_be_stuck(name: str) -> None:
    for pp in (2, 4, 8):
        found = check_order(build(name, pp, needed_micro_batches(name, pp, 16)), a_pair)
        assert len(found.stuck) == pp


@pytest.mark.parametrize(("name", "pp", "wrong"), [("zbv", 4, 9), ("dualpipev", 4, 5), ("dualpipe", 8, 10)])
def test_one_communicator_a_direction_is_found_to_deliver_the_wrong_tensors(name: str, pp: int, wrong: int) -> None:
    """In silence: all of them arrive."""
    least = needed_micro_batches(name, pp, 1)
    schedule = build(name, pp, needed_micro_batches(name, pp, least + 12))
    found = check_order(schedule, a_direction)
    assert not found.stuck
    assert found.transfers == travelling(schedule)
    assert len(found.wrong) == wrong
    assert all(sent.line[:2] == taken.line[:2] and sent != taken for sent, taken in found.wrong)


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_communicator_for_a_whole_chain_is_found_to_be_stuck(name: str) -> None:
    """Even where it carries one kind of transfer, one way: a receive stands before the send that it waits for."""
    assert check_order(build(name, 4, needed_micro_batches(name, 4, 16)), a_kind_each_way).stuck


def test_the_receiver_follows_the_sender_whatever_it_needs_first() -> None:
    """It needs micro-batch 1 before 0: by its own order it would take the one for the other."""
    orders: tuple[tuple[Step, ...], ...] = (
        (Action("F", 0, 0), Action("F", 0, 1)),
        (Action("F", 1, 1), Action("F", 1, 0)),
    )
    schedule = Schedule("1f1b", 2, 2, 2, orders)
    first, second = turns(schedule, 1)
    assert [transfer.micro_batch for transfer in first.ask] == [0, 1]
    assert second.ask == ()
    found = check_order(schedule, by_line(schedule))
    assert (found.transfers, found.stuck, found.wrong) == (2, {}, [])
    one, other, *rest = program(turns(schedule, 1))
    assert deliver([program(turns(schedule, 0)), iter([other, one, *rest])], by_line(schedule)).wrong


def test_an_order_that_waits_for_itself_is_stuck_with_tags_too() -> None:
    orders: tuple[tuple[Step, ...], ...] = (
        (Action("B", 0, 0), Action("F", 0, 0)),
        (Action("F", 1, 0), Action("B", 1, 0)),
    )
    found = check_order(Schedule("1f1b", 2, 2, 1, orders), by_tag)
    assert [op.what for op in found.stuck.values()] == ["wait", "wait"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_rank_is_at_an_end_of_two_lines_of_one_group(name: str) -> None:
    for pp in ranks(name):
        numbers = channels(build(name, pp, needed_micro_batches(name, pp, 1)))
        ends = [(number, rank) for line, number in numbers.items() for rank in (line.source, line.target)]
        assert len(ends) == len(set(ends))
        most = 4 if LAYOUTS[name] == "loop" else 8
        assert max(numbers.values()) < (most if pp % 2 == 0 or name != "interleaved" else 6)


def test_the_groups_of_a_chain_of_four() -> None:
    assert channels(build("1f1b", 4, 4)) == {
        Line(1, 0, "B"): 0, Line(2, 1, "B"): 1, Line(3, 2, "B"): 0,
        Line(0, 1, "F"): 2, Line(1, 2, "F"): 3, Line(2, 3, "F"): 2,
    }  # fmt: skip
