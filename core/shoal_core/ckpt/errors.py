"""What may be wrong with a checkpoint."""

from __future__ import annotations

from shoal_core.errors import UserError

__all__ = ["Damaged", "Earlier", "Unfit"]


class Damaged(UserError):
    """A checkpoint is not what was committed."""


class Earlier(UserError):
    """A checkpoint is of the format before this one."""


class Unfit(UserError):
    """A checkpoint is whole, but its state is not what is asked for."""
