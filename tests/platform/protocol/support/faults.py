"""The faults of the model: what may happen to a worker, a node or the controller at any moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shoal.decisions.events import Joined, Preemption
from shoal.decisions.modes import Gathering, Running
from tests.platform.protocol.support import acts
from tests.platform.protocol.support.actors import Worker, World
from tests.platform.protocol.support.scene import Scene
from tests.platform.protocol.support.takeover import restart

if TYPE_CHECKING:
    from tests.platform.protocol.support.model import Model

__all__ = ["faults"]


def faults(model: Model, world: World) -> Iterator[tuple[str, World]]:
    """Every fault that is left in `world`, at every place where it may strike."""
    crew = [model.crew[number] for number in world.workers]
    for fault in sorted(set(world.faults)):
        rest = list(world.faults)
        rest.remove(fault)
        left = world._replace(faults=tuple(rest))
        if fault == "drain":
            for node in dict.fromkeys(model.node):
                if any(w.life == "alive" for w, n in zip(crew, model.node, strict=True) if n == node):
                    scene = Scene(model, left)
                    scene.tell(None, Preemption(node))
                    yield f"{node} is to be taken away", scene.world()
        elif fault == "still":
            if isinstance(model.states[world.controller].mode, Running | Gathering):
                scene = Scene(model, left)
                scene.stand_still()
                yield "nothing moves", scene.world()
        elif fault == "restart":
            for late in (False, True):
                for lost in mislaid(crew):
                    scene = Scene(model, left)
                    restart(scene, late=late, lost=lost)
                    told = "unheard words" if late else "words"
                    yield f"another controller, {told}, without the orders of {sorted(lost)}", scene.world()
        elif fault == "arrive":
            i = next((i for i, w in enumerate(crew) if w == Worker(life="gone")), None)
            if i is not None:
                scene = Scene(model, left)
                scene.workers[i] = Worker()
                scene.tell(i, Joined(model.names[i], model.node[i]))
                yield f"w{i} arrives", scene.world()
        else:
            for i, worker in enumerate(crew):
                if worker.life != "alive":
                    continue
                scene = Scene(model, left)
                if fault == "crash":
                    scene.workers[i] = worker._replace(life="dead", inbox=())
                elif fault == "cut":
                    scene.cut(i)
                elif worker.doing in ("healing", "across", "voting"):
                    acts.between(scene, i)
                else:
                    continue
                yield f"w{i}: {fault}", scene.world()


def mislaid(crew: list[Worker]) -> list[frozenset[int]]:
    """Whose orders may be lost with the controller that gave them: nobody's, anybody's, everybody's."""
    waiting = [i for i, worker in enumerate(crew) if worker.inbox]
    found = [frozenset[int](), *(frozenset({i}) for i in waiting)]
    return [*found, frozenset(waiting)] if len(waiting) > 1 else found
