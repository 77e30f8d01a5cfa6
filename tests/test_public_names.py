"""Who takes a name of another module takes one that this offers: `__all__` is the whole of what others may rely on."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("core", "data_pipeline", "platform", "workloads")
Modules = dict[str, ast.Module]


def modules() -> Modules:
    """All of the product, by their dotted names."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT / package).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


def offered(module: ast.Module) -> set[str] | None:
    """What a module's `__all__` lists; none if it has none."""
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return None


def taken(module: ast.Module, known: Modules) -> Iterator[tuple[str, str]]:
    """(module, name) of what a module takes of others, by `from module import name` or by `module.name`."""
    called: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in known:
                    called[alias.asname or alias.name] = whole
                elif node.module in known:
                    yield node.module, alias.name
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in called:
            yield called[node.value.id], node.attr


def test_what_is_taken_is_offered() -> None:
    known = modules()
    lists = {name: offered(module) for name, module in known.items()}
    uses = [(name, of, what) for name, module in known.items() for of, what in taken(module, known)]
    assert len(uses) > 1000
    hidden = [use for use in uses if (listed := lists[use[1]]) is not None and use[2] not in listed]
    assert [use for use in hidden if f"{use[1]}.{use[2]}" not in known] == []
