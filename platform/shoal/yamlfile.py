"""YAML that people write, read strictly: nothing is said twice, nothing grows, and errors repeat no content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from shoal_core.errors import UserError

__all__ = ["load_yaml", "read_text"]

LARGEST = 1_000_000
"""Characters of a text; it takes a second to read."""
MOST_NODES = 100_000
"""Values in all, each alias counted as what it stands for: a few lines of aliases can stand for billions."""


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        FileNotFoundError: there is none.
        UserError: it cannot be read, is no UTF-8, or is too large.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(LARGEST + 1)
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start})", "write it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "name a readable file") from error


def load_yaml(text: str, source: str) -> Any:
    """What `text` says; `source` names it in errors, which never repeat what it holds: that may be a password.

    Raises:
        UserError: not YAML, a key said twice, too large, or nested too deeply.
    """
    if len(text) > LARGEST:
        raise UserError(f"{source}: is longer than {LARGEST:,} characters", "settings are a few pages at most")
    try:
        loader = _Strict(text)
    except yaml.reader.ReaderError as error:
        raise UserError(f"{source}: character {error.position} is none that YAML knows", "remove it") from error
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, source)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        problem = error.problem if isinstance(error, _Twice) else f"is not YAML: {error.problem}"
        raise UserError(f"{source}:{where} {problem}", "mend that line") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source}: is not YAML", "a character in it is none that YAML knows") from error
    except RecursionError as error:
        raise UserError(f"{source}: is nested too deeply", "settings are a few levels deep") from error
    except ValueError as error:  # a date or a number that only looks like one
        raise UserError(
            f"{source}: holds a value that cannot be read", "quote numbers and dates of odd form"
        ) from error
    finally:
        loader.dispose()


class _Twice(yaml.MarkedYAMLError):
    """A key stands twice in a mapping."""


class _Strict(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in lines:
                    raise _Twice(
                        problem=f"{key.value!r} stands in line {lines[name]} already", problem_mark=key.start_mark
                    )
                lines[name] = line
        return node


def _count(node: yaml.Node, known: dict[int, int], source: str) -> int:
    """Values that a node stands for, those of aliases included each time; `known`: of nodes counted already."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MOST_NODES + 1  # a node inside itself
    size = 1
    if isinstance(node, yaml.SequenceNode):
        size += sum(_count(item, known, source) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        size += sum(_count(item, known, source) for pair in node.value for item in pair)
    if size > MOST_NODES:
        raise UserError(f"{source}: stands for more than {MOST_NODES:,} values", "write without nested aliases")
    known[id(node)] = size
    return size
