"""A corpus as the dataset of a user's model, and what a dataset is told of what comes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shoal.train import CorpusTokens, TorchWorkload
from shoal_core.errors import UserError
from shoal_data.reading.reader import Corpus
from tests.support.corpora import write_corpus
from tests.support.torchmodels import Language, Words


class OnCorpus(TorchWorkload):
    class Config(TorchWorkload.Config):
        corpus: str

    def build_model(self, config: Config) -> nn.Module:
        return nn.Sequential(nn.Embedding(self.data.vocab_size, 8), nn.Linear(8, self.data.vocab_size))

    def dataset(self, config: Config) -> CorpusTokens:
        return CorpusTokens(config.corpus, seq_len=16, seed=5)

    def loss(self, model: nn.Module, batch: torch.Tensor) -> tuple[Any, ...]:
        logits, wanted = model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()
        return F.cross_entropy(logits, wanted, reduction="sum"), wanted.numel()


def test_positions_are_the_readers_and_the_corpus_is_known_by_its_digest(tmp_path: Path) -> None:
    where = str(write_corpus(tmp_path / "corpus"))
    corpus = Corpus.open(where)
    workload = OnCorpus(OnCorpus.Config(global_batch=4, micro_batch=2, corpus=where))
    assert workload.preflight(2)["samples"] == corpus.samples(16)
    last = corpus.samples(16) - 1
    for positions in ([0, 1, 2], [last, last + 1]):  # into the next epoch
        found = workload.items.batch(positions)
        assert found.tolist() == corpus.reader(16, 5).tokens(positions).tolist()
        assert torch.equal(workload.data[positions[0]], found[0])
    identity = workload.identity()["data"]
    assert corpus.digest in str(identity["dataset"])
    with pytest.raises(UserError, match="nowhere"):
        OnCorpus(OnCorpus.Config(global_batch=4, corpus=str(tmp_path / "nowhere"))).preflight(1)


class Told(Words):
    """Remembers what it was told will come."""

    coming: Iterable[Sequence[int]] = ()

    def expect(self, coming: Iterable[Sequence[int]]) -> None:
        self.coming = coming


def test_a_dataset_that_wants_to_know_is_told_what_this_worker_reads_next() -> None:
    class Telling(Language):
        def dataset(self, config: Any) -> Words:
            return Told(50)

    workload = Telling(Telling.Config.model_validate({"global_batch": 4}))
    workload.build(0).expect(iter([[range(2), range(2, 4)], [range(4, 6)]]))
    assert isinstance(workload.data, Told)
    assert list(workload.data.coming) == [workload.items.indices(range(i, i + 2)) for i in (0, 2, 4)]
