"""The streams of a pipeline rank on a device: a pair's two threads wait for collectives and never for each other."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from shoal_workloads.parallel.pipeline.executor import Executor
from shoal_workloads.parallel.pipeline.streams import DeviceStreams, Streams, streams_of
from shoal_workloads.parallel.pipeline.wires import Wires
from shoal_workloads.parallel.schedule import LAYOUTS, Action, Pair, Schedule, actions_of, build, needed_micro_batches
from tests.support.queues import Noted, Queues, Stream, run

RANKS = 2  # that share experts


class Layers:
    """Stages of one rank, whose actions exchange experts' rows. Of a pair, `first` (F or B) is queued before the other;
    that is chance, and another one on every rank."""

    def __init__(self, device: Queues, schedule: Schedule, first: str) -> None:
        self._device, self._first, self._last = device, first, schedule.stages - 1
        self._pairs = {
            (action.kind, action.stage, action.micro_batch): pair
            for order in schedule.orders
            for pair in order
            if isinstance(pair, Pair)
            for action in (pair.forward, pair.backward)
        }
        self._queued: dict[Any, threading.Event] = {pair: threading.Event() for pair in self._pairs.values()}
        self._forward_on: dict[tuple[int, int], Stream] = {}
        self.handed: list[tuple[Noted, Stream, Stream]] = []
        """Tensors, where they were made, and where they were used."""
        self._made: dict[int, Stream] = {}

    def forward(self, stage: int, micro_batch: int, x: torch.Tensor | None) -> torch.Tensor | None:
        self._forward_on[stage, micro_batch] = self._device.current_stream()
        self._exchange("F", stage, micro_batch, x)
        return None if stage == self._last else self._make()

    def backward(self, stage: int, micro_batch: int, grad: torch.Tensor | None, *, wait: bool) -> torch.Tensor | None:
        """Autograd takes every operation back to the stream of its forward; the caller's waits for it at the end."""
        caller, own = self._device.current_stream(), self._forward_on[stage, micro_batch]
        own.wait_stream(caller)
        with self._device.stream(own):
            self._exchange("I" if wait else "B", stage, micro_batch, grad)
        caller.wait_stream(own)
        return None if stage == 0 else self._make()

    def weights(self, stage: int, micro_batch: int) -> None:
        """No experts' rows."""

    def _exchange(self, kind: Any, stage: int, micro_batch: int, value: torch.Tensor | None) -> None:
        pair = self._pairs.get((kind, stage, micro_batch))
        if pair is not None and kind != self._first:
            assert self._queued[pair].wait(60)
        self._device.exchange("forward" if kind == "F" else "gradients")
        if pair is not None and kind == self._first:
            self._queued[pair].set()
        if isinstance(value, Noted):
            self.handed.append((value, self._made.get(id(value), self._device.main), self._device.current_stream()))

    def _make(self) -> Noted:
        made = torch.zeros(1).as_subclass(Noted)
        self._made[id(made)] = self._device.current_stream()
        return made


class OneStream(Streams):
    """All threads on the stream that torch gives them."""


class StreamAThread(Streams):
    """The thread beside has a stream of its own, for whatever it is called to do."""

    def __init__(self, device: Queues) -> None:
        self._device, self._owner = device, threading.get_ident()
        self._beside = device.Stream()

    def on(self, stage: int) -> Any:
        beside = threading.get_ident() != self._owner
        return self._device.stream(self._beside if beside else self._device.main)


def walked(kind: str, firsts: Iterable[str], *, measure: bool = False) -> tuple[list[Queues], list[Layers]]:
    """Every rank's part of DualPipeV on one rank, two stages of which are at home there: what it queued."""
    schedule = build("dualpipev", 1, 8)
    devices, layers = [], []
    for first in firsts:
        device = Queues()
        streams = {
            "one": OneStream,
            "a thread": lambda device=device: StreamAThread(device),
            "a stage": lambda device=device: DeviceStreams(schedule.stages_of(0), device),
        }[kind]()
        stages = Layers(device, schedule, first)
        executor = Executor(
            schedule, 0, stages, torch.zeros(1), Wires(schedule, (0,)), overlap=True, streams=streams, measure=measure
        )
        executor.run(range(8))
        devices.append(device)
        layers.append(stages)
    return devices, layers


@pytest.mark.parametrize("kind", ["one", "a thread"])
def test_two_ranks_that_share_streams_wait_for_each_other(kind: str) -> None:
    """Chance decides which of a pair comes first, and differs; where it does not, nothing is wrong."""
    assert not run(walked(kind, "FB")[0])
    assert run(walked(kind, "FF")[0])
    assert run(walked(kind, "BB")[0])


@pytest.mark.parametrize("firsts", ["FB", "BF", "FF", "FBB"])
def test_with_a_stream_a_stage_nobody_waits_whatever_comes_first(firsts: str) -> None:
    assert run(walked("a stage", firsts)[0])


def test_a_tensor_that_changes_streams_says_so() -> None:
    """Else its memory is taken for another while a kernel still reads it."""
    _, (layers,) = walked("a stage", "F")
    changed = [(tensor, used) for tensor, made, used in layers.handed if made is not used]
    assert len(changed) == 2 * 8  # at the turn of the V, both ways
    assert all(used in tensor.streams for tensor, used in changed)


def test_steps_follow_each_other_and_only_a_pair_is_side_by_side() -> None:
    """Else gradients that two stages share would be added to at once."""
    (device,), _ = walked("a stage", "F")
    main, waits, joined = device.main, [], 0
    for step in build("dualpipev", 1, 8).orders[0]:
        waits += [joined] * len(actions_of(step))
        joined += len(actions_of(step))
    assert len(main.queued) == joined
    found = [about for stream in device.streams[1:] for what, about in stream.queued if what == "after"]
    assert sorted(much for stream, much in found if stream is main) == waits


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_actions_of_a_pair_are_of_two_stages(name: str) -> None:
    """So that they are on two streams."""
    for pp in (2, 4, 6):
        for order in build(name, pp, needed_micro_batches(name, pp, 20)).orders:
            pairs = [step for step in order if isinstance(step, Pair)]
            assert all(pair.forward.stage != pair.backward.stage for pair in pairs)


def test_a_step_that_is_measured_waits_for_the_device_and_others_do_not() -> None:
    (device,), _ = walked("a stage", "F", measure=True)
    ends, joined = [], 0
    for step in build("dualpipev", 1, 8).orders[0]:
        ends += [joined, joined + len(actions_of(step))]
        joined = ends[-1]
    assert device.main.settled == ends
    assert not walked("a stage", "F")[0][0].main.settled


def test_stages_that_are_computed_alone_stay_on_the_main_stream() -> None:
    device = Queues()
    streams = DeviceStreams((), device)
    streams.fork(0, None)
    with streams.on(0):
        assert device.current_stream() is device.main
    streams.join(0)
    assert not device.main.queued


def test_a_cpu_has_no_streams() -> None:
    assert type(streams_of("cpu", (0, 1))) is Streams


class Meeting:
    """A stage whose second forward and first backward each wait for the other to begin."""

    def __init__(self) -> None:
        self._both = threading.Barrier(2)
        self.done: list[str] = []

    def forward(self, stage: int, micro_batch: int, x: torch.Tensor | None) -> torch.Tensor | None:
        if micro_batch == 1:
            self._both.wait(timeout=60)
        self.done.append(f"F{micro_batch}")
        return None

    def backward(self, stage: int, micro_batch: int, grad: torch.Tensor | None, *, wait: bool) -> torch.Tensor | None:
        if micro_batch == 0:
            self._both.wait(timeout=60)
        self.done.append(f"B{micro_batch}")
        return None

    def weights(self, stage: int, micro_batch: int) -> None:
        raise AssertionError("no weights were left")


def test_both_actions_of_a_pair_are_under_way_at_once() -> None:
    """So that one computes while the other waits for its experts' rows."""
    order = (
        Action("F", 0, 0),
        Pair(Action("F", 0, 1), Action("B", 0, 0)),
        Action("B", 0, 1),
    )
    stages, schedule = Meeting(), Schedule("1f1b", 1, 1, 2, (order,))
    Executor(schedule, 0, stages, torch.empty(0), Wires(schedule, (0,)), overlap=True).run(range(2))
    assert stages.done[0] == "F0"
    assert sorted(stages.done[1:3]) == ["B0", "F1"]
    assert stages.done[3:] == ["B1"]
