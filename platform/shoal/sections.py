"""What every section of the job file is, and the sections that are known beside the whole of it (`config`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["WIDEST", "Autoscale", "Elastic", "Section"]

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
