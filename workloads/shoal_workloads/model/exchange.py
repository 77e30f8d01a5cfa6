"""What a model asks of whoever carries its tokens to experts on other workers, and back.

    trip = exchange.dispatch(x_ND, gates_NK, places_NK, held, fp8=...)   # rows are on their way
    ...                                                                  # compute something else
    rows_RD, gates_R, routes = trip.dispatched()
    trip.combine(experts(rows_RD, gates_R, routes))                      # outputs are on their way back
    ...
    y_ND = trip.combined()

No token is dropped. N: tokens of this worker, D: width, K: experts a token, H: experts held by each worker of the
exchange (the expert in place p is on rank p // H), R: rows for the experts here.
"""

from __future__ import annotations

from typing import Protocol

import torch

from shoal_workloads.model.permute import Routes

__all__ = ["Exchange", "Trip"]


class Trip(Protocol):
    """Tokens to experts and back, once. The methods are called in this order, by all workers that share the experts.
    `sources`: routes of the rows of each worker, one after the other, as if it were alone; none: they are mixed on
    their way."""

    @property
    def sources(self) -> list[Routes] | None:
        """See there."""

    def dispatched(self) -> tuple[torch.Tensor, torch.Tensor, Routes]:
        """Wait for the rows of the experts here: (R, D), their gates (R,), and their routes, one choice a row."""

    def dispatched_again(self, tokens: torch.Tensor) -> torch.Tensor:
        """The rows of `dispatched` once more, in backward, from the same tokens (N, D): waits for them. By all workers,
        in the same order among other backward traffic."""

    def combine(self, y: torch.Tensor) -> None:
        """Send the experts' outputs back. y: (R, D), in the order of the rows."""

    def combined(self) -> torch.Tensor:
        """Wait for the outputs, summed by token: (N, D)."""


class Exchange(Protocol):
    """Between the workers that share the experts of a model."""

    @property
    def ranks(self) -> int:
        """How many they are."""

    def dispatch(
        self, tokens: torch.Tensor, gates: torch.Tensor, places: torch.Tensor, held: int, *, fp8: bool = False
    ) -> Trip:
        """Begin a trip. tokens: (N, D); gates, places: (N, K); held: H. `fp8`: whether rows on their way to experts
        travel in FP8, forward and backward. Collective, over workers that may bring different N.

        Raises:
            RuntimeError: a peer is gone.
        """
