"""What reading or building a corpus may raise, for programs that catch it. `InputError` is the project's one error type
by the name that such programs know."""

from __future__ import annotations

from shoal_core.errors import StoreError
from shoal_core.errors import UserError as InputError

__all__ = ["InputError", "StoreError"]
