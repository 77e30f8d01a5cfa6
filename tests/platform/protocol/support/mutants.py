"""Broken rules. Each forgets one thing the protocol needs; a search must find out what that leads to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from shoal.decisions.actions import Action, CommitLate
from shoal.decisions.decide import decide
from shoal.decisions.events import Event, Lost
from shoal.decisions.modes import Running, Stopping
from shoal.decisions.state import State
from shoal.plan.reshape import Choice, Present, Stay, Survivor
from shoal.protocol.said import Ack, Acked, Committed
from tests.platform.protocol.support import acts
from tests.platform.protocol.support.actors import VOTE, Worker, World, reach
from tests.platform.protocol.support.aimed import Aimed
from tests.platform.protocol.support.model import Model
from tests.platform.protocol.support.scene import Scene

__all__ = [
    "BegunAlone",
    "CommitAfterAnswer",
    "ForgottenCommit",
    "ForgottenShape",
    "KeptToItself",
    "LateWord",
    "LetGo",
    "MetAlone",
    "NoVote",
    "TrustedRecord",
    "decide_too_early",
    "fenced_but_not_lost",
    "late_commit_not_ordered",
    "never_back",
    "never_pieced",
    "stays_behind",
]


def late_commit_not_ordered(state: State, event: Event) -> tuple[State, list[Action]]:
    """Whoever is behind a committed step is not told."""
    after, actions = decide(state, event)
    return after, [action for action in actions if not isinstance(action, CommitLate)]


def stays_behind(state: State, event: Event) -> tuple[State, list[Action]]:
    """Whoever answers from behind a committed step counts as having answered, and the others go on."""
    if isinstance(event, Acked) and 0 <= event.ack.steps < state.committed:
        event = Acked(event.worker, event.generation, Ack(state.committed, -1, (), event.ack.out, event.ack.whole, 0))
    return decide(state, event)


def decide_too_early(state: State, event: Event) -> tuple[State, list[Action]]:
    """A death is decided upon without waiting for the answers of the living."""
    after, actions = decide(state, event)
    if isinstance(event, Lost) and isinstance(after.mode, Stopping):
        for worker in sorted(after.awaited):
            out = after.seats[worker].cell in after.mode.broken
            answer = Acked(worker, after.generation, Ack(after.committed, -1, (), out, False, after.seats[worker].rank))
            after, more = decide(after, answer)
            actions = [*actions, *more]
    return after, actions


class CommitAfterAnswer(Model):
    """A worker that walked away from a vote commits by itself when the vote turns out to be complete."""

    def ordinary(self, world: World) -> Iterator[tuple[str, World]]:
        yield from super().ordinary(world)
        crew = [self.crew[number] for number in world.workers]
        answered = self.states[world.controller].acks
        for i, me in enumerate(crew):
            if self.names[i] in answered and me.doing == "idle" and me.total >= 0 and me.order is not None:
                at = reach(me.steps, VOTE)
                voters = [crew[m] for _, members in me.order[1] for m in members]
                if me.reach == at and all(w.order == me.order and w.reach >= at for w in voters):
                    scene = Scene(self, world)
                    acts.commit(scene, i, "applied")
                    yield f"w{i} commits by itself", scene.world()


class NoVote(Model):
    """A worker commits as soon as it has the sums of its rank: others may not have theirs."""

    def peers(self, crew: list[Worker], i: int, me: Worker) -> list[Worker]:
        return [me] if me.doing == "voting" else super().peers(crew, i, me)


class BegunAlone(Model):
    """A worker begins its cell's first step without asking whether its peers do."""

    def acts(self, crew: list[Worker], i: int, me: Worker) -> Iterator[tuple[str, Callable[[Scene, int], None]]]:
        if me.doing == "beginning":
            yield "begins alone", acts.begin
        else:
            yield from super().acts(crew, i, me)


class MetAlone(Model):
    """A worker that is told to stop while all meet walks away, whoever has gone on."""

    def acts(self, crew: list[Worker], i: int, me: Worker) -> Iterator[tuple[str, Callable[[Scene, int], None]]]:
        yield from super().acts(crew, i, me)
        if me.doing == "meeting" and me.told():
            yield "walks away from meeting", acts.walk


def fenced_but_not_lost(state: State, event: Event) -> tuple[State, list[Action]]:
    """A worker that is silent is fenced, and its cell is taken for whole."""
    return (state, []) if isinstance(event, Lost) else decide(state, event)


def never_back(state: State, event: Event) -> tuple[State, list[Action]]:
    """When cells of another shape do not come about, nobody remembers who holds shards of the former one."""
    before = state.copy()
    for former in before.formers:
        former.held.clear()
    return decide(before, event)


def never_pieced(state: State, event: Event) -> tuple[State, list[Action]]:
    """Where no shape is whole any more, what is left of several is not put together."""
    before = state.copy()
    if before.shape.choose is not None:
        choose = before.shape.choose

        def alone(living: Mapping[str, Survivor], present: Present, step: int) -> Choice | Stay:
            return choose(living, present, step) if present.cells else Stay("")

        before.shape = replace(before.shape, choose=alone)
    after, actions = decide(before, event)
    after.shape = replace(after.shape, choose=state.shape.choose)
    return after, actions


class LetGo(Model):
    """A worker lets its shard of the former shape go as soon as it has filled one of the next."""

    keeps = False


class ForgottenShape(Aimed):
    """A controller that takes over does not know of shards of the shape before."""

    remembers = False


class KeptToItself(Model):
    """A worker that is stopped tells of a commit that only it has made when it answers: it may never come to that."""

    tells_at_a_stop = False


class ForgottenCommit(Model):
    """A worker does not say to another controller what it had kept for the last one."""

    says_again = False


class TrustedRecord(Model):
    """A controller that takes over believes that all are where the record has them."""

    corrects = False


class LateWord(Model):
    """The controller reads what a worker that it has fenced says, whatever generation it is of."""

    def ordinary(self, world: World) -> Iterator[tuple[str, World]]:
        yield from super().ordinary(world)
        state = self.states[world.controller]
        for i, number in enumerate(world.workers):
            me = self.crew[number]
            if me.life == "cut" and me.doing == "applied" and isinstance(state.mode, Running):
                scene = Scene(self, world)
                scene.set(i, doing="idle")
                event = Committed(self.names[i], state.generation, me.steps)
                if event.steps > len(scene.log):
                    scene.record(event)
                scene.controller, actions = self.answer(scene.controller, event)
                for action in actions:
                    scene.act(action)
                yield f"the controller hears late that w{i} committed", scene.world()
