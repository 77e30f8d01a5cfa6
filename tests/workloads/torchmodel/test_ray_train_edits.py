"""How far a script for Ray Train is from one for Shoal: counted, and shown in docs/your-model.md as it is."""

from __future__ import annotations

import ast
import re
from difflib import SequenceMatcher, unified_diff
from pathlib import Path

import ray.train

ROOT = Path(__file__).resolve().parents[3]
BEFORE, AFTER = (ROOT / f"docs/examples/ray_train_{name}.py" for name in ("before", "after"))
PAGE = (ROOT / "docs/your-model.md").read_text()
NOT_IN_THE_TUTORIAL = {"enable_reproducibility"}


def test_five_places_of_a_script_are_changed() -> None:
    """Two of them are imports that go."""
    before, after = ([line for line in file.read_text().splitlines() if line.strip()] for file in (BEFORE, AFTER))
    edits = [edit for edit in SequenceMatcher(None, before, after, False).get_opcodes() if edit[0] != "equal"]
    assert len(edits) <= 5
    gone, written = (sum(edit[i + 1] - edit[i] for edit in edits) for i in (1, 3))
    assert f"{gone} lines go, {written} are written, and {len(after) - written} stay" in PAGE


def test_the_page_shows_the_difference_that_there_is() -> None:
    before, after = (file.read_text().splitlines() for file in (BEFORE, AFTER))
    lines = [re.sub("^@@.*", "@@", line) for line in list(unified_diff(before, after, n=1, lineterm=""))[2:]]
    assert "```diff\n" + "\n".join(lines) + "\n```" in PAGE


def test_the_script_for_ray_train_does_what_its_own_example_does() -> None:
    """Of what that calls of Ray Train nothing is left out, so that no edit is saved by a shorter script."""
    own = (Path(ray.train.__file__).parent / "examples/pytorch/torch_fashion_mnist_example.py").read_text()
    calls = of_ray_train(own)
    assert {"prepare_model", "prepare_data_loader", "report", "TorchTrainer", "ScalingConfig"} <= calls
    assert calls - NOT_IN_THE_TUTORIAL <= of_ray_train(BEFORE.read_text())


def test_a_run_from_python_is_a_file_of_twenty_lines() -> None:
    text = (ROOT / "docs/examples/first_model.py").read_text()
    assert len([line for line in text.splitlines() if line.strip()]) <= 20


def of_ray_train(text: str) -> set[str]:
    """Names that a script calls, and that Ray Train has."""
    import ray.train.torch

    called = {node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}
    names = {node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in called}
    return {name for name in names if hasattr(ray.train, name) or hasattr(ray.train.torch, name)}
