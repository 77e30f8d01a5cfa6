"""lm-evaluation-harness, offline, scores an export as our model scores the same text."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

from shoal_workloads.checkpoint import Checkpoint
from shoal_workloads.evaluate import build_model
from shoal_workloads.hf.export import export
from tests.support.checkpoints import write_checkpoint
from tests.support.corpora import EOS, write_corpus

TEXTS = ["def heappush(heap, item):\n    heap.append(item)\n", "import textwrap\n", "class Grüße:\n    pass\n"]

TASK = """
task: local_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}]
"""

# What its command does, less reading the thousands of tasks that come with it.
SCRIPT = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

model, tasks, out = sys.argv[1:]
manager = TaskManager(include_path=tasks, include_defaults=False)
arguments = f"pretrained={model},dtype=float32"
found = simple_evaluate("hf", model_args=arguments, tasks=["local_text"], device="cpu", task_manager=manager)
json.dump(found["results"], open(out, "w"))
"""


def test_a_local_task_on_the_export(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    section = {
        "model": {"preset": "laptop-1m", "vocab_size": 512},
        "data": {"corpus": str(corpus), "seq_len": 64},
        "batch": {"global_batch": 8, "micro_batch": 8},
        "schedule": {"budget": 30 * 512, "lr": 1e-2, "warmup_steps": 2},
    }
    checkpoint = write_checkpoint(section, tmp_path, steps=5)
    export(checkpoint, tmp_path / "hf", dtype="fp32")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local_text.yaml").write_text(TASK.format(data=tmp_path / "texts.jsonl"))

    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "hf"), str(tmp_path / "tasks"), str(tmp_path / "results.json")],
        env={**os.environ, **offline, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())["local_text"]["bits_per_byte,none"]
    assert math.isclose(found, bits_per_byte(checkpoint, corpus), rel_tol=1e-4)


@torch.no_grad()
def bits_per_byte(checkpoint: Path, corpus: Path) -> float:
    """Of TEXTS, each after an end of text: by our own model, from the checkpoint itself."""
    model, tokenizer = build_model(Checkpoint(checkpoint)), Tokenizer.from_file(str(corpus / "tokenizer.json"))
    nats = 0.0
    for text in TEXTS:
        ids = torch.tensor([tokenizer.token_to_id(EOS), *tokenizer.encode(text).ids])
        nats += float(torch.nn.functional.cross_entropy(model.logits(ids[None, :-1])[0], ids[1:], reduction="sum"))
    return nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)
