"""The class of a script, as workers import it."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from shoal.record.rundir import RunDir
from shoal.train.importing import path_of
from shoal_core.errors import UserError
from shoal_core.loading import make_workload

CLASS = "class Mine:\n    pass\n"


def run_as_main(text: str, file: Path | None, monkeypatch: pytest.MonkeyPatch) -> type:
    """The class `Mine` of a script that is run as Python runs it."""
    main = types.ModuleType("__main__")
    if file is not None:
        file.write_text(text)
        main.__file__ = str(file)
        monkeypatch.syspath_prepend(str(file.parent))
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(compile(text, str(file), "exec"), main.__dict__)
    found: type = main.Mine
    return found


def test_the_class_of_a_script_is_found_under_the_scripts_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = run_as_main(CLASS, tmp_path / "train_mine_1.py", monkeypatch)
    assert path_of(ours) == "train_mine_1:Mine"


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("train_mine_2.py", f"{CLASS}import sys\nif __name__ != '__main__': sys.exit(3)", "raises SystemExit"),
        ("train_mine_3.py", f"if __name__ == '__main__':\n  {CLASS.replace('    ', '     ')}", "no such class"),
        ("string.py", CLASS, "give the script another name"),
        ("train_mine_5.py", f"{CLASS}if __name__ != '__main__': raise OSError('once')", "raises OSError: once"),
        ("my-model.py", CLASS, "is no name"),
        (None, CLASS, "notebook"),
    ],
)
def test_a_class_that_workers_cannot_import_is_refused_by_name(
    name: str | None, text: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = run_as_main(text, tmp_path / name if name else None, monkeypatch)
    with pytest.raises(UserError, match=why):
        path_of(ours)


def test_a_script_that_trains_whenever_it_is_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trains = "\nfrom shoal.train import ShoalTrainer\nif __name__ != '__main__':\n    ShoalTrainer(Mine)\n"
    ours = run_as_main(CLASS + trains, tmp_path / "train_mine_4.py", monkeypatch)
    with pytest.raises(UserError, match="whenever it is imported") as refused:
        path_of(ours)
    assert "if __name__ == '__main__'" in refused.value.remedy


@pytest.mark.parametrize(
    "makes", ["ShoalTrainer.restore(RUN)", "ShoalTrainer('train_mine_6:Mine', workload_config={'lr': 0.1})"]
)
def test_a_worker_that_imports_a_script_starts_and_follows_no_run(
    makes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named by a word or on a record, the class is imported where the run is checked, and by every worker."""
    settings: dict[str, Any] = {"steps": 5, "workload": {"path": "train_mine_6:Mine"}}
    run = RunDir.create(tmp_path, "a", settings, resume=False)
    run.append_event("run_started")
    run.close()
    script = f"from shoal.train import ShoalTrainer\nfrom shoal_workloads.synthetic import Synthetic as Mine\n{makes}\n"
    (tmp_path / "train_mine_6.py").write_text(script.replace("RUN", repr(str(run.path))))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="train_mine_6: makes its trainer whenever it is imported"):
        make_workload(settings["workload"])
    assert "train_mine_6" not in sys.modules


def test_a_script_that_python_reads_from_standard_input_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = run_as_main(CLASS, None, monkeypatch)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    with pytest.raises(UserError, match="a pipe"):
        path_of(ours)


@pytest.mark.parametrize("given", [3, None, lambda config: None, object()])
def test_what_is_no_class_is_refused(given: object) -> None:
    with pytest.raises(UserError, match="is no class"):
        path_of(given)  # type: ignore[arg-type]
