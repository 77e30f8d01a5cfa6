"""What every section of the job file is, and the sections that are known beside the whole of it (`config`)."""

from __future__ import annotations

import shlex
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from shoal.record.masking import has_secret

__all__ = ["WIDEST", "Autoscale", "Elastic", "Notify", "Section"]

WIDEST = 100_000
"""More cells, or workers of a cell, than a cluster holds."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Elastic(Section):
    """What may change of the cells' shape, where that puts more of the living workers to work."""

    fsdp: bool = Field(True, description="whether the number of FSDP shards may change")
    ep: list[Annotated[int, Field(ge=1, le=WIDEST)]] | None = Field(
        None, min_length=1, description="sizes that expert groups may have, the run's own among them; none: any"
    )
    pp: list[Annotated[int, Field(ge=1, le=WIDEST)]] | None = Field(
        None, min_length=1, description="pipeline ranks that there may be, the run's own among them; none: any"
    )
    cells: tuple[Annotated[int, Field(ge=1, le=WIDEST)], Annotated[int, Field(ge=1, le=WIDEST)]] = Field(
        (1, WIDEST), description="the fewest cells of another shape, and the most"
    )
    min_workers: int = Field(
        1, ge=1, le=WIDEST, description="workers that must be there at first, and train in another shape"
    )
    hold_s: float = Field(
        30.0, ge=0.0, le=86_400.0, description="seconds for which who comes must have stayed before the run grows"
    )

    @field_validator("cells")
    @classmethod
    def _from_few_to_many(cls, cells: tuple[int, int]) -> tuple[int, int]:
        if cells[0] > cells[1]:
            raise ValueError(f"the fewest, {cells[0]}, are more than the most, {cells[1]}; write [fewest, most]")
        return cells


class Autoscale(Section):
    """Nodes that are asked of the cluster's autoscaler, where it has one, for what the run lacks."""

    enabled: bool = True
    spares: int | None = Field(
        None, ge=0, le=WIDEST, description="spares that nodes are asked for; by default `spares`, none if that is all"
    )
    wait_s: float = Field(
        600.0, ge=1.0, le=86_400.0, description="seconds for a node to come before it is asked for anew, after a pause"
    )


Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
Topic = Literal["run_ended", "recovery", "no_progress", "nodes_set_aside", "checkpoint_overdue"]


class Notify(Section):
    """Who is told what happens to the run: an address, a command, or both. What is secret stays in the environment of
    `shoal train`, and is named here."""

    url_env: Variable | None = Field(
        None, description='variable that holds the address which `{"text": ...}` is posted to, as Slack takes it'
    )
    token_env: Variable | None = Field(None, description="variable that holds a bearer's token to be sent there")
    command: list[str] | None = Field(
        None, min_length=1, description="a program of the controller's node and its arguments; JSON on its input"
    )
    command_env: list[Variable] = Field([], description="variables that the command is given")
    on: list[Topic] = Field(
        ["run_ended", "recovery", "no_progress", "nodes_set_aside", "checkpoint_overdue"],
        min_length=1,
        description="what is told",
    )
    wait_s: float = Field(
        60.0, ge=0.0, le=86_400.0, description="seconds between two messages; what happens meanwhile goes into one"
    )
    timeout_s: float = Field(10.0, gt=0.0, le=60.0, description="seconds that telling may take")
    no_progress_s: float = Field(600.0, gt=0.0, le=86_400.0, description="seconds without a committed step")
    checkpoint_overdue_s: float | None = Field(
        None, gt=0.0, description="seconds without a whole checkpoint; by default as long as two intervals"
    )

    @field_validator("command")
    @classmethod
    def _without_secrets(cls, command: list[str] | None) -> list[str] | None:
        if command is not None and (not command[0].strip() or has_secret(shlex.join(command))):
            raise ValueError("is empty, or holds what looks like a credential; its variable belongs into command_env")
        if command is not None and any("\0" in word for word in command):
            raise ValueError("has a NUL character, which no program can be given")
        return command

    @model_validator(mode="after")
    def _somebody(self) -> Notify:
        if self.url_env is None and self.command is None:
            raise ValueError("names nobody to tell: give url_env or command")
        if self.token_env is not None and self.url_env is None:
            raise ValueError("token_env is sent to url_env, which is not given")
        return self
