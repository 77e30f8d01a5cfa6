"""Programs outside of the project read a corpus by `shoal_data.reader`, look into it by `shoal_data.inspection`, and
catch what `shoal_data.errors` names."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal_core.errors import UserError
from shoal_data.errors import InputError, StoreError
from shoal_data.inspection import documents
from shoal_data.reader import Corpus


def test_what_a_program_catches_is_what_is_raised(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Corpus.open(tmp_path / "nowhere")
    assert isinstance(caught.value, UserError)
    assert issubclass(StoreError, InputError)


def test_a_program_looks_into_a_corpus(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        next(documents(Corpus.open(tmp_path / "nowhere")))
