"""How a worker imports the class that a trainer is given, which may stand in the script that makes the trainer."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

from shoal_core.errors import UserError
from shoal_core.loading import imported, importing

__all__ = ["check_not_imported", "path_of"]

IMPORTED = re.compile(r"[A-Za-z_]\w*")
APART = "put the class into a module of its own, beside the script, and import it from there"
GUARD = "put what runs under `if __name__ == '__main__':`, since every worker imports the script for its class"


def path_of(workload: str | type) -> str:
    """How a worker imports a workload. A script's own class is taken where workers can import the script: Ray lets them
    find what lies beside it.

    Raises:
        UserError: it cannot.
    """
    if isinstance(workload, str):
        return workload
    if not isinstance(workload, type):
        raise UserError(
            f"workload: {getattr(workload, '__name__', type(workload).__name__)} is no class",
            "give the class, or package.module:Class; a training function becomes one (docs/your-model.md)",
        )
    name, module = workload.__qualname__, workload.__module__
    if not IMPORTED.fullmatch(name):
        raise UserError(f"workload: no worker can import {name} of {module}", APART)
    if module != "__main__":
        return f"{module}:{name}"
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or not Path(file).is_file():  # "<stdin>" where Python reads the script from there
        raise UserError(
            f"workload: no worker can import {name} of __main__, no file (a notebook, a prompt, a pipe)",
            "put the class into a module of its own, a file beside the notebook, and import it from there",
        )
    spec = getattr(main, "__spec__", None)  # of `python -m`
    module = spec.name if spec is not None else Path(file).stem
    _check(module, name, Path(file))
    return f"{module}:{name}"


def check_not_imported() -> None:
    """Called by what must not run while a script is imported for its workload: by a worker, by a check before the run,
    or to see whether workers can.

    Raises:
        UserError: one is.
    """
    if (what := imported()) is not None:
        raise UserError(f"{what}: makes its trainer whenever it is imported", GUARD)


def _check(module: str, name: str, script: Path) -> None:
    """Raises: UserError: `module` cannot be imported, is not `script`, or has no class `name`."""
    problem = f"workload: no worker can import {name} of {script}"
    if not all(map(IMPORTED.fullmatch, module.split("."))):
        raise UserError(f"{problem}: {module} is no name of a module", "name the script by letters, digits and _")
    try:
        with importing(str(script)):
            found = importlib.import_module(module)
    except UserError:
        raise
    except BaseException as error:  # whatever a script does, `sys.exit` too
        raise UserError(f"{problem}: as module {module} it raises {type(error).__name__}: {error}", APART) from error
    where = getattr(found, "__file__", None)
    if where is None or not Path(where).samefile(script):
        raise UserError(f"{problem}: module {module} is {where or 'built in'}", "give the script another name")
    if not isinstance(getattr(found, name, None), type):
        raise UserError(f"{problem}: as a module it has no such class", "define the class at the script's top level")
