"""What somebody wishes to know of a run while it trains (`record.wish`), handed to its workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shoal.protocol import orders
from shoal.record.wish import take
from shoal_core.store import Store

__all__ = ["Wishes"]


class Wishes:
    """Of the run at `store`, which is looked at every `period` seconds.

    `crew`: the workers that train, by cell and rank; `send`: an order to some; `journal`: a line of it.
    """

    def __init__(
        self,
        store: Store,
        period: float,
        crew: Callable[[], list[str]],
        send: Callable[[list[str], orders.Order], None],
        journal: Callable[..., None],
    ) -> None:
        self._store, self._period, self._crew, self._send, self._journal = store, period, crew, send, journal

    async def look(self) -> float:
        """Fulfil a wish that was left; returns the seconds until the next look."""
        wish = await asyncio.to_thread(take, self._store)
        if wish is not None:
            chosen = wish.chosen(self._crew())
            self._send(chosen, orders.Profile(wish.first, wish.last, wish.memory))
            problem = (
                None if chosen else f"no worker that trains has {' or '.join(wish.workers) or 'a seat'} in its name"
            )
            fields = {"steps": [wish.first, wish.last], "actors": chosen, "problem": problem}
            self._journal("profile_wanted", **fields)
        return self._period
