"""`python -m shoal.control.foretell`: what a step of a run should take, by its workload, in a process of its own.

It reads one line of JSON, the fields of `Question`, and prints one: what the workload predicts, or `{"why": ...}`. It
ends by itself when its standard input does, which is when its parent does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict, dataclass
from typing import Any

from shoal.record.masking import mask_text
from shoal_core.errors import UserError
from shoal_core.loading import make_workload
from shoal_core.workload import Crew

__all__ = ["Question", "answer"]

ORPHANED = 3


@dataclass(frozen=True)
class Question:
    """`workload`: the job's section; `mesh`: sizes of the cells' axes if they have another shape than the job's."""

    workload: dict[str, Any]
    step: int
    cells: int
    mesh: dict[str, int] | None
    crew: Crew

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def read(cls, line: str) -> Question:
        fields = json.loads(line)
        return cls(**{**fields, "crew": Crew(**fields["crew"])})


def answer(question: Question) -> dict[str, Any]:
    """What is predicted, or why nothing is: nobody waits for it, and nothing hangs on it."""
    try:
        workload = make_workload(question.workload)
        if question.mesh is not None:
            workload = workload.shaped(question.mesh)
        found = workload.predicted(question.step, question.cells, question.crew)
        return found or {"why": ["the workload says nothing"]}
    except UserError as error:
        return {"why": [mask_text(f"{error.problem}: {error.remedy}")]}
    except Exception as error:  # whatever a workload's own code raises
        return {"why": [mask_text(f"{type(error).__name__}: {error}")]}


def end_with_parent() -> None:
    sys.stdin.read()
    os._exit(ORPHANED)


def main() -> None:
    os.nice(10)
    said = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a workload prints is no answer
    question = Question.read(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    with os.fdopen(said, "w") as out:
        out.write(json.dumps(answer(question)))
        out.flush()
    os._exit(0)  # a thread of theirs keeps nobody


if __name__ == "__main__":
    main()
