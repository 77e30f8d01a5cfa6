"""What the 10M model learns in 30 minutes on 2 cores, in bits per byte of held-out text, beside what compressors make.

    python benchmarks/learning.py --corpus ../shared/corpus [--tokens 3000000] [--out FILE.json]

Training ends after `--tokens`, which the schedules are made for, or after `--seconds` of CPU time, whichever is first
(3,600: 30 minutes x 2 cores; on a shared machine the wall says little); interrupted, it goes on where it was. gzip and
xz get the held-out text and nothing else; the 5-gram (interpolated Kneser-Ney) has counted the whole training text, of
which the model has read a part. All are measured on the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
from pathlib import Path

import pyarrow.parquet as pq
import torch

from ngram import KneserNey
from small_runs import evaluate, heldout_text, model_section, prepare, train

SEQ_LEN, BATCH = 256, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of Parquet files with path and text")
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"), help="state of the run")
    parser.add_argument("--tokens", type=int, default=3_000_000, help="tokens to train on: the schedules' budget")
    parser.add_argument("--seconds", type=float, default=3600, help="most CPU seconds of training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/learning.json"), help="figures; the curve as .png")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = options.folder.parent / "small"
    prepare(options.corpus, data)
    steps = options.tokens // (BATCH * SEQ_LEN)
    section = model_section(
        data,
        SEQ_LEN,
        batch={"global_batch": BATCH, "micro_batch": BATCH},
        schedule={"budget": options.tokens, "lr": 3e-3, "warmup_steps": 20, "gamma": 0.003},
        eval={"samples": 64},
    )
    replica, metrics = train(
        section, options.folder, lambda step, cpu: step >= steps or cpu >= options.seconds, evaluate_every=50
    )
    figures = {"model": evaluate(replica, data)["bpb"], **peers(data), **cost(metrics)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**figures, "curve": curve(metrics)}, indent=1) + "\n")
    draw(figures, curve(metrics), options.out.with_suffix(".png"))
    print(json.dumps(figures, indent=2))


def peers(data: Path) -> dict[str, float]:
    """Bits per byte of the compressors and the 5-gram on the text that the held-out samples predict."""
    text = heldout_text(data, SEQ_LEN)
    training = b"\n".join(
        document.encode()
        for file in sorted((data / "raw").glob("train-*.parquet"))
        for document in pq.read_table(file, columns=["text"])["text"].to_pylist()
    )
    return {
        "heldout_bytes": float(len(text)),
        "training_bytes": float(len(training)),
        "gzip -9": 8 * len(gzip.compress(text, 9)) / len(text),
        "xz -9": 8 * len(lzma.compress(text, preset=9)) / len(text),
        "5-gram": KneserNey(training).bits_per_byte(text),
    }


def cost(metrics: list[dict[str, float]]) -> dict[str, float]:
    """What training took."""
    tokens = sum(m["tokens"] for m in metrics)
    return {"tokens": tokens, "cpu_seconds": metrics[-1]["cpu"], "wall_seconds": metrics[-1]["wall"]}


def curve(metrics: list[dict[str, float]]) -> list[dict[str, float]]:
    """Every evaluation: tokens and CPU seconds before it, bits per byte."""
    tokens, points = 0.0, []
    for m in metrics:
        tokens += m["tokens"]
        if "bpb" in m:
            points.append({"tokens": tokens, "cpu_seconds": m["cpu"], "bpb": m["bpb"]})
    return points


def draw(figures: dict[str, float], points: list[dict[str, float]], path: Path) -> None:
    """The curve, with the peers as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot([p["cpu_seconds"] for p in points], [p["bpb"] for p in points], label="10M model")
    for name, style in (("gzip -9", ":"), ("xz -9", "--"), ("5-gram", "-.")):
        axes.axhline(figures[name], color="gray", linestyle=style, label=name)
    axes.set(xlabel="CPU seconds of training", ylabel="bits per byte, held-out text")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
