"""What every section of the job file is, and the sections that are known beside the whole of it (`config`)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["WIDEST", "Autoscale", "Section"]

WIDEST = 100_000
"""More cells, or workers of a cell, than a cluster holds."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Autoscale(Section):
    """Nodes that are asked of the cluster's autoscaler, where it has one, for what the run lacks."""

    enabled: bool = True
    spares: int | None = Field(
        None, ge=0, le=WIDEST, description="spares that nodes are asked for; by default `spares`, none if that is all"
    )
    wait_s: float = Field(
        600.0, ge=1.0, le=86_400.0, description="seconds for a node to come before it is asked for anew, after a pause"
    )
