"""Tests of a workload of your own: does it survive what Shoal survives? No Ray and no cluster needed.

A **lab** is a run on this machine: its controller and workers are processes that really die, its nodes are names. Every
wait ends in an AssertionError with the run's story if what is waited for does not come. For a pytest `tmp_path`:

>>> from shoal.testing import Injection, alone, assert_exactly_once, assert_no_trace, lab
>>> workload = {"path": "shoal_workloads.synthetic:Synthetic", "global_batch": 8, "seconds": 0.01}
>>> nodes = {"n0": 2, "n1": 2, "n2": 2}  # slots of each

A worker is killed while the run trains; a spare takes its place, no step is lost, and every loss is what one process
comes to that trains alone:

>>> with lab(tmp_path, nodes, cells=2, steps=80, workload=workload, audit={"samples": True}) as run:
...     run.full(steps=5, spares=2)
...     run.kill(run.members(cell=1)[0])
...     summary = run.finished()
>>> summary["status"], summary["steps_lost"]
('done', 0)
>>> assert_exactly_once(run.path, steps=80)
>>> losses = alone(workload, steps=80).losses
>>> all(abs(step["loss"] - loss) < 1e-4 for step, loss in zip(run.steps(), losses, strict=True))
True

Where exactly in a step something happens is said by a fault that is injected (`shoal.worker.inject` names the points).
In exact mode it leaves no trace: losses and final state are those of an undisturbed run, to the bit.

>>> fault = Injection(at="vote", step=7, cell=1, rank=0, how="kill")
>>> run = assert_no_trace(tmp_path, nodes, inject=[fault], cells=2, steps=20, workload=workload)
>>> run.events("death")[0]["actor"]
'lab/cell1/stage0/shard0@n1'

`World` is for less than a run: it calls a function on every rank of a small `torch.distributed` world.

`shoal.testing.fakenccl` is a backend of torch's that imitates NCCL's manners (no tags, operations in the order issued,
errors that nothing raises), to find without a GPU what gloo forgives: `World.run(function, backend="fakenccl")`.
"""

from shoal.config import Injection
from shoal.testing.cable import Cable
from shoal.testing.lab import Lab, lab
from shoal.testing.outcome import Outcome, alone, assert_exactly_once, assert_no_trace, outcome
from shoal.testing.processes import preload
from shoal.testing.world import World, world

__all__ = [
    "Cable",
    "Injection",
    "Lab",
    "Outcome",
    "World",
    "alone",
    "assert_exactly_once",
    "assert_no_trace",
    "lab",
    "outcome",
    "preload",
    "world",
]
