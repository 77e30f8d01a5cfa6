"""The global batch is the same whatever cells are alive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal import batching
from shoal_core.errors import UserError


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 4), st.integers(1, 12), st.integers(1, 5))
def test_every_sample_of_a_step_is_taken_once(step: int, workers: int, size: int, parts: int, cells: int) -> None:
    batch = parts * workers * size
    first, last = step * batch, (step + 1) * batch
    count = batching.count(first, last, workers, size)
    assert count == parts
    taken = [
        index
        for micro_batches in batching.share(count, list(range(cells))).values()
        for m in micro_batches
        for rank in range(workers)
        for index in batching.ids(first, m, rank, workers, size)
    ]
    assert sorted(taken) == list(range(first, last))


@given(st.integers(1, 20), st.data())
def test_finished_work_is_kept_and_the_rest_is_dealt_evenly(count: int, data: st.DataObject) -> None:
    cells = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True))
    owner = data.draw(st.lists(st.sampled_from([*cells, None]), min_size=count, max_size=count))
    done = {cell: tuple(m for m in range(count) if owner[m] == cell) for cell in cells}
    todo = batching.rest(count, cells, done)
    assert sorted(m for cell in cells for m in [*done[cell], *todo[cell]]) == list(range(count))
    load = {cell: len(done[cell]) + len(todo[cell]) for cell in cells}
    given_work = [load[cell] for cell in cells if todo[cell]]
    assert not given_work or max(given_work) <= min(load.values()) + 1


def test_what_a_dead_cell_had_done_is_done_again() -> None:
    assert batching.rest(4, [0], {0: (0,), 1: (1,)}) == {0: [1, 2, 3]}


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="2 workers x 3 samples"):
        batching.count(0, 16, 2, 3)


def test_a_batch_that_nobody_can_list_is_refused() -> None:
    assert batching.count(0, batching.MOST, 1, 1) == batching.MOST
    with pytest.raises(UserError, match="1,000,001 samples: a step has 1,000,000 at most"):
        batching.count(0, batching.MOST + 1, 1, 1)


@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 4), st.integers(0, 3), st.data())
def test_what_comes_is_what_is_handed_out(workers: int, size: int, cells: int, begin: int, data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.integers(1, 9), min_size=4, max_size=4))  # of steps whose batches differ

    def samples(step: int) -> tuple[int, int]:
        first = sum(parts[:step]) * workers * size
        return first, first + parts[step] * workers * size

    crew = list(range(7, 7 + cells))
    left = batching.share(parts[begin], crew)[7][1:]
    found = list(batching.coming(samples, range(begin, 4), left, crew, 7, workers, size))
    assert len(found) == 4 - begin
    for step, micro_batches in enumerate(found, begin):
        todo = left if step == begin else batching.share(parts[step], crew)[7]
        assert micro_batches == [batching.cell_ids(samples(step)[0], m, workers, size) for m in todo]
