"""The controller's decisions: a pure function of (state, event).

A generation is a membership. It ends by a drain: every living worker is told to stop, acknowledges with how far its
state is, and only when all have answered is it decided what was committed and who goes on. The rule: if anyone
committed a step, everyone alive commits it. Rungs, cheapest first: retry, heal, shrink and grow, restore.
"""

from __future__ import annotations

from dataclasses import replace

from shoal import batching
from shoal.control.messages import (
    Acked,
    Action,
    Checkpointed,
    Committed,
    End,
    Evaluated,
    Event,
    Failed,
    Finished,
    Form,
    Generation,
    Joined,
    Journal,
    Lost,
    Raise,
    Ready,
    Rewind,
    Stop,
)
from shoal.control.state import Phase, State, Worker
from shoal.plan import Seat, choose

__all__ = ["FRUITLESS", "decide", "unanswered"]

FRUITLESS = 20
"""Generations without a committed step after which a run ends instead of healing in circles."""


def decide(before: State, event: Event) -> tuple[State, list[Action]]:
    """The next state and what to do, after `event`."""
    state = before.copy()
    if state.mode == "ended":
        return state, []
    actions: list[Action] = []
    match event:
        case Joined(worker, node, home):
            state.expected -= {worker}
            state.workers[worker] = Worker(node, home)
        case Lost(worker, how):
            lose(state, worker, how, actions)
        case Ready(worker, index, attempt):
            cell = state.cells[index]
            if cell.phase == "forming" and cell.attempt == attempt:
                ready = cell.ready | {worker}
                phase: Phase = "ready" if len(ready) == state.shape.workers else "forming"
                state.cells[index] = replace(cell, ready=ready, phase=phase)
        case Acked(worker, generation, ack):
            if generation == state.generation and state.mode == "draining" and worker in state.workers:
                state.acks[worker] = ack
        case Committed(worker, generation, steps):
            if generation == state.generation:
                state.commits[worker] = steps
                if steps > state.committed:
                    state.committed, state.fruitless = steps, 0
            return state, actions
        case Evaluated(_, generation, steps):
            if generation == state.generation:
                state.evaluated = max(state.evaluated, steps)
            return state, actions
        case Checkpointed(steps):
            state.checkpoint = max(state.checkpoint, steps)
            return state, actions
        case Finished(worker, generation):
            if generation == state.generation and state.mode == "running":
                state.finished.add(worker)
                if state.finished >= set(state.crew()):
                    end(state, actions, "done", "every step is committed")
        case Failed():
            fail(state, event, actions)
    if state.mode != "ended":
        settle(state, actions)
    return state, actions


def end(state: State, actions: list[Action], status: str, reason: str) -> None:
    state.mode = "ended"
    actions.append(End("done" if status == "done" else "failed", reason))


def lose(state: State, worker: str, how: str, actions: list[Action]) -> None:
    """Take a dead worker out of everything it was part of."""
    state.expected -= {worker}
    seat = state.seat(worker)
    state.workers.pop(worker, None)
    state.acks.pop(worker, None)
    if seat is None:
        return
    cell = state.cells[seat.cell].without(worker)
    state.cells[seat.cell] = cell
    if cell.phase == "live":
        damage(state, seat.cell, f"{worker} is gone ({how})", actions)
    else:
        state.cells[seat.cell] = replace(cell, phase="empty", attempt=cell.attempt + 1, ready=frozenset())


def fail(state: State, event: Failed, actions: list[Action]) -> None:
    """A worker that lives cannot go on."""
    seat = state.seat(event.worker)
    if event.where == "code":
        end(state, actions, "failed", f"{event.worker}: {event.message}")
    elif seat is None:
        return
    elif event.where == "form":
        cell = state.cells[seat.cell]
        if cell.phase == "forming" and cell.attempt == event.attempt:
            state.fruitless += 1
            state.cells[seat.cell] = replace(cell, phase="empty", attempt=cell.attempt + 1, ready=frozenset())
    elif event.generation == state.generation and seat.cell in state.live:
        if event.where == "cell":
            damage(state, seat.cell, f"{event.worker}: {event.message}", actions)
        else:
            drain(state, f"{event.worker}: {event.message}", actions)


def damage(state: State, cell: int, reason: str, actions: list[Action]) -> None:
    """A live cell's world is unusable: its members must leave it, whatever they acknowledged before."""
    if cell in state.live and cell not in state.broken:
        state.broken |= {cell}
        if state.mode == "draining":
            stop(state, actions)
    drain(state, reason, actions)


def drain(state: State, reason: str, actions: list[Action]) -> None:
    """End the current generation, once."""
    if state.mode == "running":
        state.mode = "draining"
        state.acks, state.raised = {}, -1
        actions.append(Journal("drain", {"generation": state.generation, "reason": reason}))
        stop(state, actions)


def stop(state: State, actions: list[Action]) -> None:
    actions.append(Stop(state.generation, tuple(sorted(state.broken)), tuple(state.crew())))


def settle(state: State, actions: list[Action]) -> None:
    """Do all that the state now allows."""
    fill(state, actions)
    phases = [cell.phase for cell in state.cells]
    if state.mode == "gathering" and "ready" in phases and "forming" not in phases and not state.expected:
        publish(state, [c for c, phase in enumerate(phases) if phase == "ready"], {}, actions)
    elif state.mode == "running" and "ready" in phases:
        drain(state, f"cell {phases.index('ready')} joins", actions)
    if state.mode == "draining":
        conclude(state, actions)
    if state.mode != "ended" and state.fruitless > FRUITLESS:
        end(state, actions, "failed", f"{state.fruitless} attempts in a row committed no step")


def fill(state: State, actions: list[Action]) -> None:
    """Form every empty cell that can be; the members of one that cannot become spares."""
    for index, cell in enumerate(state.cells):
        if cell.phase != "empty":
            continue
        seats = [Seat(index, rank) for rank, member in enumerate(cell.members) if member is None]
        if any(state.homes.get(seat) in state.expected for seat in seats):
            continue
        spares = state.spares()
        found = {seat: state.homes[seat] for seat in seats if state.homes.get(seat) in spares}
        for worker in found.values():
            del spares[worker]
        kept = [state.workers[m].node for m in [*cell.people(), *found.values()]]
        others = [state.workers[m].node for c, other in enumerate(state.cells) if c != index for m in other.people()]
        rest = [seat for seat in seats if seat not in found]
        chosen = choose(reserve(state, spares), rest, kept, others)
        if len(chosen) < len(rest):
            state.cells[index] = replace(
                cell, members=(None,) * state.shape.workers, rung="grow" if state.live else "start"
            )
            continue
        found |= chosen
        members = tuple(m or found[Seat(index, rank)] for rank, m in enumerate(cell.members))
        state.cells[index] = replace(cell, members=members, phase="forming", ready=frozenset())
        restore = state.checkpoint if state.mode == "gathering" else None
        actions.append(Form(index, cell.attempt, members, restore))


def reserve(state: State, spares: dict[str, str]) -> dict[str, str]:
    """Spares less those that are the home worker of another seat still to be filled."""
    homes = {
        state.homes.get(Seat(c, r)) for c, cell in enumerate(state.cells) for r, m in enumerate(cell.members) if not m
    }
    return {worker: node for worker, node in spares.items() if worker not in homes} if state.expected else spares


def conclude(state: State, actions: list[Action]) -> None:
    """If every living worker has answered: decide what is committed and who goes on."""
    if unanswered(state):
        return
    healthy = [c for c in state.live if c not in state.broken]
    steps = max([state.committed, *(ack.steps for ack in state.acks.values()), *state.commits.values()])
    behind = [w for w in state.crew(healthy) if 0 <= state.acks[w].steps < steps]
    if behind:
        if state.raised < steps:
            state.raised = steps
            actions.append(Raise(state.generation, steps, tuple(behind)))
        return
    good = [c for c in healthy if all(state.acks[w].steps == steps for w in state.crew([c]))]
    state.committed = steps
    state.evaluated = max([state.evaluated, *(ack.evaluated for ack in state.acks.values())])
    joining = [c for c, cell in enumerate(state.cells) if cell.phase == "ready"]
    for index in state.broken:
        cell = state.cells[index]
        state.cells[index] = replace(cell, phase="empty", attempt=cell.attempt + 1, ready=frozenset(), rung="heal")
    if not good:
        rewind(state, actions)
        return
    done = {c: state.acks[state.crew([c])[0]].done for c in good}
    unhealed = [c for c in healthy if c not in good]
    broken = state.broken
    publish(state, sorted([*good, *unhealed, *joining]), done, actions, good=good)
    fill(state, actions)
    for c in sorted(broken):
        rung = "heal" if state.cells[c].phase == "forming" else "shrink"
        actions.append(Journal("decision", {"rung": rung, "cells": [c], "reason": reason_of(rung, c)}))
    if not broken and not joining:
        actions.append(Journal("decision", {"rung": "retry", "cells": good, "reason": "nobody died: same step again"}))


def unanswered(state: State) -> list[str]:
    """Living workers whose valid acknowledgement is still to come: those of a broken cell must also have left it."""
    return [
        worker
        for cell in state.live
        for worker in state.cells[cell].people()
        if (ack := state.acks.get(worker)) is None or (cell in state.broken and not ack.out)
    ]


def reason_of(rung: str, cell: int) -> str:
    if rung == "heal":
        return f"cell {cell} is formed again from its living members and spares; the other cells go on"
    return f"no spare for cell {cell}: the other cells take its micro-batches, its living workers are spares now"


def rewind(state: State, actions: list[Action]) -> None:
    """No cell is whole any more: start all over from the last whole checkpoint."""
    lost = state.committed - state.checkpoint
    where = f"the checkpoint of step {state.checkpoint}" if state.checkpoint else "the initial state"
    actions.append(
        Journal(
            "decision",
            {
                "rung": "restore",
                "cells": list(range(state.shape.cells)),
                "reason": f"no cell is whole: back to {where}",
            },
        )
    )
    actions.append(Rewind(state.checkpoint, lost))
    state.committed, state.evaluated = state.checkpoint, -1
    state.mode, state.live, state.broken = "gathering", (), frozenset()
    state.acks, state.commits, state.finished = {}, {}, set()
    state.fruitless += 1
    state.cells = [
        replace(cell, phase="empty", attempt=cell.attempt + (cell.phase != "empty"), ready=frozenset(), rung="restore")
        for cell in state.cells
    ]
    fill(state, actions)


def publish(
    state: State,
    cells: list[int],
    done: dict[int, tuple[int, ...]],
    actions: list[Action],
    good: list[int] | None = None,
) -> None:
    """A new generation of `cells`; those not in `good` (by default the first alone) are healed from those that are."""
    good = [cells[0]] if good is None else good
    if state.committed < state.shape.steps:
        todo = batching.rest(state.shape.micro_batches(state.committed), cells, done)
    else:
        todo = {c: [] for c in cells}
    state.generation += 1
    state.mode, state.live, state.broken = "running", tuple(cells), frozenset()
    state.acks, state.commits, state.finished = {}, {}, set()
    state.fruitless += 1
    heals = tuple((good[i % len(good)], c) for i, c in enumerate(c for c in cells if c not in good))
    for c in cells:
        state.cells[c] = replace(state.cells[c], phase="live")
    members = {c: tuple(state.cells[c].people()) for c in cells}
    attempts = {c: state.cells[c].attempt for c in cells}
    actions.append(Generation(state.generation, members, attempts, state.committed, state.evaluated, todo, heals))
