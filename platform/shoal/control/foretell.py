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
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

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


class OverStep(BaseModel):
    """Bytes by part, at `times` of a step."""

    times: list[float]
    parts: dict[str, list[float]]

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if not self.times or any(len(sizes) != len(self.times) for sizes in self.parts.values()):
            raise ValueError("each part has a size for each of the times, of which there is one at least")
        return self


class Factors(BaseModel):
    """What was learned from runs."""

    step: float
    memory: float


class Figures(BaseModel):
    """What is read of a workload's figures (docs/record.md), each if it is there; others it may have too."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    samples: int | None = None
    memory_peak_bytes: float | None = None
    memory_parts: dict[str, float] | None = None
    memory_over_step: OverStep | None = None
    step_seconds: float | None = None
    step_parts: dict[str, float] | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    hardware: str | None = None
    learned: Factors | None = None
    pipeline: list[list[tuple[str, float, float]]] | None = None
    why: list[str] = []


def answer(question: Question) -> dict[str, Any]:
    """What is predicted, or why nothing is: nobody waits for it, and nothing hangs on it."""
    try:
        workload = make_workload(question.workload)
        if question.mesh is not None:
            workload = workload.shaped(question.mesh)
        found = workload.predicted(question.step, question.cells, question.crew)
        if not found:
            return {"why": ["the workload says nothing"]}
        Figures.model_validate_json(json.dumps(found), strict=True)  # who reads the record later relies on them
        return found
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "its figures"
        return {"why": [mask_text(f"what the workload says is none of docs/record.md: {where}: {first['msg']}")]}
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
