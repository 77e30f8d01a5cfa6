"""One controller dies and another takes over, by the record and by what the living say."""

from __future__ import annotations

from shoal.decisions.events import TakenOver
from shoal.decisions.readopt import Living, Past, as_lived, rebuild, unrecorded
from shoal.protocol.said import Acked, Committed, Finished, Phase
from tests.platform.protocol.support import acts
from tests.platform.protocol.support.actors import Worker
from tests.platform.protocol.support.scene import Scene

__all__ = ["restart"]

PHASES = {"forming": Phase.FORMING, "answering": Phase.STOPPED, "fell": Phase.FAILED, "late": Phase.STOPPED}
"""What a worker says that it does, where it is not part of a step."""


def restart(scene: Scene, *, late: bool, lost: frozenset[int]) -> None:
    """The controller dies, with the orders to `lost` that they have not taken; another goes by the record and by
    what the living say. `late`: the commits that they kept come after it has rebuilt what it knows."""
    for i in lost:
        scene.set(i, inbox=())
    for i, worker in enumerate(scene.workers):
        if worker.life in ("dead", "cut"):
            scene.set(i, life="gone", inbox=())
    past, before = scene.published_last, scene.model.states[scene.controller]
    living = {scene.model.names[i]: greeting(scene, i) for i, w in enumerate(scene.workers) if w.life == "alive"}
    told, former = (None if shape is None else shape.told() for shape in (past.shape, past.former))
    where = (past.generation, dict(past.cells), dict(past.attempts), len(scene.log), -1, before.checkpoint)
    record = Past(*where, shape=told, former=former, changed=past.changed if scene.model.remembers else -1)
    shape = scene.model.shape
    state, corrections = rebuild(shape, as_lived(shape, record, living), living)
    words = [unsaid(scene, i) for i, w in enumerate(scene.workers) if w.life == "alive" and w.unsaid >= 0]
    words = words if scene.model.says_again else []
    if not late:
        kept = [{"step": step, "generation": generation} for step, generation in enumerate(scene.log)]
        for commit in unrecorded(kept, words):
            scene.log = scene.log[: commit.steps - 1]
            scene.record(commit)
    state.recorded = len(scene.log)
    if scene.log:
        state.newest = Committed("", scene.log[-1], len(scene.log))
    scene.controller = scene.model.intern(state)
    for event in corrections if scene.model.corrects else ():
        scene.tell(None, event)
    for word in words:
        scene.tell(scene.model.number[word.worker], word)
    for i, worker in enumerate(scene.workers):
        say_again(scene, i, worker)
    scene.tell(None, TakenOver())


def say_again(scene: Scene, i: int, me: Worker) -> None:
    """What a worker said lately it says to every controller that comes."""
    if me.life == "alive" and me.doing == "idle" and me.over == "answered" and not me.told():
        scene.tell(i, Acked(scene.model.names[i], me.generation, acts.answer(scene, i)))
    elif me.life == "alive" and me.doing == "idle" and me.over == "finished":
        scene.tell(i, Finished(scene.model.names[i], me.generation))


def unsaid(scene: Scene, i: int) -> Committed:
    """The commit that a worker kept: it is said to every controller that comes."""
    me = scene.workers[i]
    scene.set(i, unsaid=-1)
    return Committed(scene.model.names[i], me.generation, me.unsaid)


def greeting(scene: Scene, i: int) -> Living:
    """How a worker greets a controller."""
    me = scene.workers[i]
    seat = (me.cell, me.form[2].index(i)) if me.stands and me.form is not None else None
    attempt = -1 if me.form is None else me.form[1]
    phase = PHASES.get(me.doing, Phase.ACROSS)
    if me.doing == "idle":
        over = Phase.FINISHED if me.over == "finished" else Phase.STOPPED
        phase = over if me.stands else Phase.SPARE
    kept = tuple((one.shape, one.steps, one.rank) for one in me.kept)
    return Living(scene.model.node[i], seat, attempt, me.generation, phase, me.steps, max(me.shape, 0), None, kept)
