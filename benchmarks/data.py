"""The data pipeline beside what a user would pick instead: same cores, same files, one run.

    python benchmarks/data.py [encode] [train] [scale] [seek] [read] --corpus ../shared/corpus --out data.json

`--times` repeats the corpus (10 gives 0.8 GB); slow peers get `--peer-files` of it and are compared by MB/s. Peers that
are not installed (`pip install -e '.[bench]'`) are reported as absent; datatrove and MosaicML Streaming, which do not
resolve beside the rest, run under `--peer-python`. Each contender runs in a process of its own; `peak_mb` is that
process's, `all_processes_mb` counts what it started, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SEQ_LEN = 4096


def contender(name: str, python: str = sys.executable, **arguments: Any) -> dict[str, Any]:
    """Run one contender of `data_contenders.py`; returns its figures with its peak memory, or why there are none."""
    command = [python, str(HERE / "data_contenders.py"), name, json.dumps(arguments)]
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=False, start_new_session=True)
    lines = done.stdout.decode().splitlines()
    if done.returncode or not lines:
        return {"absent": f"exit code {done.returncode}"}
    figures: dict[str, Any] = json.loads(lines[-1])
    print(f"  {name}: {figures}", flush=True)
    return figures


def ratio(ours: dict[str, Any], theirs: dict[str, Any], key: str = "mb_per_second") -> float | None:
    """Ours over theirs, or None where one is absent."""
    if key not in ours or key not in theirs:
        return None
    return round(ours[key] / theirs[key], 2)


def encode(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Raw Parquet to finished shards."""
    tokenizer = str(folder / "tokenizer" / "tokenizer.json")
    files = copies(arguments.corpus, folder / "raw", arguments.times)
    few = [str(arguments.corpus / name) for name in arguments.peer_files]
    ours = contender("tokenize", files=files, tokenizer=tokenizer, out=str(folder / "corpus"))
    peers = {
        "gigatoken.encode_files": contender("gigatoken_files", files=files, tokenizer=tokenizer),
        "tiktoken": contender("tiktoken", files=few, tokenizer=tokenizer),
        "datasets.map + tokenizers": contender("datasets_map", files=few, tokenizer=tokenizer, out=str(folder / "ds")),
        "datatrove": contender(
            "datatrove", arguments.peer_python, files=few, tokenizer=tokenizer, out=str(folder / "dt")
        ),
    }
    return {"ours": ours, "peers": peers, "ratios": {name: ratio(ours, peer) for name, peer in peers.items()}}


def train(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A 32K vocabulary on the corpus, and on the corpus ten times."""
    once, ten = copies(arguments.corpus, folder / "once", 1), copies(arguments.corpus, folder / "ten", 10)
    ours = contender("train", files=once, out=str(folder / "ours"), vocab_size=32768)
    on_ray = contender("train", files=once, out=str(folder / "ours_on_ray"), vocab_size=32768, ray=True)
    repeated = contender("train", files=ten, out=str(folder / "ours10"), vocab_size=32768, ray=True)
    peer = contender("train_tokenizers", files=once, out=str(folder / "theirs.json"), vocab_size=32768)
    result = {"ours": ours, "ours on Ray": on_ray, "ours on Ray, text ten times": repeated, "tokenizers": peer}
    if "seconds" in peer:
        found = [
            json.loads((folder / name).read_bytes())["model"]["merges"]
            for name in ("ours/tokenizer.json", "theirs.json")
        ]
        result["identical merges"] = found[0] == found[1]
        result["times faster"] = round(peer["seconds"] / ours["seconds"], 2)
        steady = on_ray["seconds"] - on_ray["ray_start"]
        result["times faster on Ray"] = round(peer["seconds"] / on_ray["seconds"], 2)
        result["times faster on Ray without its start"] = round(peer["seconds"] / steady, 2)
        result["share of its peak memory"] = round(ours["peak_mb"] / peer["peak_mb"], 2)
    return result


def scale(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Cost a MB as the text grows, and two cores against one; Ray's start is taken off and shown."""
    tokenizer = str(folder / "tokenizer" / "tokenizer.json")
    result: dict[str, Any] = {}
    for times in (1, arguments.times, *([100] if arguments.large else [])):
        files = copies(arguments.corpus, folder / f"scale{times}", times)
        out = str(folder / f"scaled{times}")
        result[f"{times} x, 2 cores"] = contender("tokenize", files=files, tokenizer=tokenizer, out=out)
    files = copies(arguments.corpus, folder / f"scale{arguments.times}", arguments.times)
    one = contender("tokenize", files=files, tokenizer=tokenizer, out=str(folder / "one"), cpus=1)
    result[f"{arguments.times} x, 1 core"] = one
    result["two cores against one"] = ratio(result[f"{arguments.times} x, 2 cores"], one, "steady_mb_per_second")
    return result


def seek(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A synthetic manifest of 14.8T tokens in 100,000 shards: time to a sample's place, memory of the index."""
    return contender("seek", shards=100_000, tokens=14_800_000_000_000, seq_len=SEQ_LEN, out=str(folder))


def read(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Samples a second of one shuffled reader, at the start and far on, beside memcpy and MosaicML Streaming."""
    corpus = folder / "read"
    if not (corpus / "manifest.json").exists():
        files = copies(arguments.corpus, folder / "scale1", 1)
        contender("tokenize", files=files, tokenizer=str(folder / "tokenizer" / "tokenizer.json"), out=str(corpus))
    ours = contender("read", corpus=str(corpus), seq_len=SEQ_LEN)
    peer = contender("mosaic", arguments.peer_python, corpus=str(corpus), seq_len=SEQ_LEN, out=str(folder / "mds"))
    return {"ours": ours, "mosaicml-streaming": peer, "times faster": ratio(ours, peer, "samples_per_second")}


def copies(corpus: Path, folder: Path, times: int) -> list[str]:
    """The corpus's files, `times` over, as links with names of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(times):
        for path in sorted(corpus.glob("*.parquet")):
            link = folder / f"{path.stem}-{number:05d}.parquet"
            if not link.exists():
                link.symlink_to(path.resolve())
    return sorted(str(path) for path in folder.glob("*.parquet"))


ROWS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "encode": encode,
    "train": train,
    "scale": scale,
    "seek": seek,
    "read": read,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="which rows of the table (all)")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of Parquet files with a column `text`")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--peer-files", nargs="*", default=["fastapi-docs.parquet"])
    parser.add_argument("--peer-python", default=sys.executable, help="has datatrove, mosaicml-streaming and Shoal")
    parser.add_argument("--large", action="store_true", help="also the corpus a hundred times (8 GB)")
    parser.add_argument("--out", type=Path, default=Path("data.json"))
    parser.add_argument("--work", type=Path, help="keep what is built here")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"cores": os.cpu_count(), "load_before": os.getloadavg(), "time": time.time()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.work or Path(scratch)
        for row in arguments.rows or ROWS:
            if row in ("encode", "scale", "read") and not (folder / "tokenizer").exists():
                once = copies(arguments.corpus, folder / "once", 1)
                contender("train", files=once, out=str(folder / "tokenizer"), vocab_size=32768)
            print(row, flush=True)
            results[row] = ROWS[row](arguments, folder)
            results[row]["load"] = os.getloadavg()
            arguments.out.write_text(json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
