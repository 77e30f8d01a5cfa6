"""Whether Ray takes a runtime environment for workers: told before a run, and not by workers that cannot start."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any

from ray.runtime_env import RuntimeEnv

from shoal_core.errors import UserError

__all__ = ["check_environment"]

PLUGINS = "RAY_RUNTIME_ENV_PLUGINS"
"""Ray's variable that names plugins, which have fields of their own."""
FIELDS = frozenset(name for name in RuntimeEnv.known_fields if not name.startswith("_")) | {"nsight", "rocprof_sys"}


def check_environment(env: Mapping[str, Any]) -> None:
    """Hold a job's `worker_runtime_env` against what Ray knows; of fields that it does not know it only warns, in the
    log of each worker's node.

    Raises:
        UserError: a field is unknown, or Ray refuses what they say.
    """
    for name in env.keys() - FIELDS if PLUGINS not in os.environ else ():
        near = difflib.get_close_matches(name, FIELDS, n=1)
        meant = f", did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"worker_runtime_env: Ray has no field {name!r}{meant}",
            f"name one of {', '.join(sorted(FIELDS))}; a plugin's where {PLUGINS} says which",
        )
    try:
        RuntimeEnv(**env)
    except Exception as error:  # of whatever kind: each field has its own parser
        raise UserError(
            f"worker_runtime_env: Ray refuses it ({type(error).__name__}: {' '.join(str(error).split())})",
            "see Ray's page on runtime environments",
        ) from error
