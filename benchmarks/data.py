"""The data pipeline beside what a user would pick instead: same cores, same files, one run.

    python benchmarks/data.py [encode] [train] [scale] [seek] [read] [loader] --corpus FOLDER --out data.json

`--times` repeats the corpus (10 gives 0.8 GB); slow peers get `--peer-files` of it and are compared by MB/s. Peers that
are not installed (`pip install -e '.[bench]'`) are reported as absent; datatrove and MosaicML Streaming, which do not
resolve beside the rest, run under `--peer-python`. Each contender runs in a process of its own; `peak_mb` is that
process's, `all_processes_mb` counts what it started, too. With `--work` a run that was stopped goes on where it was:
the figures of each contender are kept there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SEQ_LEN = 4096


def contender(folder: Path, name: str, python: str = sys.executable, turn: int = 0, **arguments: Any) -> dict[str, Any]:
    """Figures of one contender of `data_contenders.py`, from `folder` if it ran before (this `turn`); or why there are
    none."""
    key = hashlib.sha256(json.dumps([name, turn, arguments]).encode()).hexdigest()[:12]
    kept = folder / "figures" / f"{name}-{key}.json"
    if kept.exists():
        known: dict[str, Any] = json.loads(kept.read_bytes())
        return known
    left = Path(arguments.get("out", folder / "nothing"))  # by a run that was stopped
    if left.is_dir():
        shutil.rmtree(left)
    left.unlink(missing_ok=True)
    command = [python, str(HERE / "data_contenders.py"), name, json.dumps(arguments)]
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    before = os.getloadavg()[0]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=False, start_new_session=True)
    lines = done.stdout.decode().splitlines()
    if done.returncode or not lines:
        return {"absent": f"exit code {done.returncode}"}
    figures: dict[str, Any] = {**json.loads(lines[-1]), "load": [round(before, 1), round(os.getloadavg()[0], 1)]}
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(figures))
    print(f"  {name}: {figures}", flush=True)
    return figures


def ratio(ours: dict[str, Any], theirs: dict[str, Any], key: str = "mb_per_second") -> float | None:
    """Ours over theirs, or None where one is absent."""
    if key not in ours or key not in theirs:
        return None
    return round(ours[key] / theirs[key], 2)


def steady(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures of a run on Ray with the start of Ray and of its workers taken off."""
    return {name.removeprefix("steady_"): value for name, value in figures.items() if name.startswith("steady_")}


def middle(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The turn of median speed."""
    return sorted(turns, key=lambda one: one.get("mb_per_second", 0.0))[len(turns) // 2]


def encode(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Raw Parquet to finished shards: as the command does it on one machine, and on a Ray, in turns with gigatoken."""
    tokenizer = str(folder / "tokenizer" / "tokenizer.json")
    files = copies(arguments.corpus, folder / "raw", arguments.times)
    few = [str(arguments.corpus / name) for name in arguments.peer_files]
    ours, on_ray, alone = [], [], []
    for turn in range(arguments.turns):
        both: dict[str, Any] = {"turn": turn, "files": files, "tokenizer": tokenizer}
        ours.append(contender(folder, "tokenize", **both, out=str(folder / "corpus"), ray=False))
        on_ray.append(contender(folder, "tokenize", **both, out=str(folder / "on_ray")))
        alone.append(contender(folder, "gigatoken_files", **both))
    once = copies(arguments.corpus, folder / "once", 1)
    peers = {
        "gigatoken.encode_files": middle(alone),
        "tiktoken": contender(folder, "tiktoken", arguments.peer_python, files=few, tokenizer=tokenizer),
        "datasets.map + tokenizers": contender(
            folder, "datasets_map", files=few, tokenizer=tokenizer, out=str(folder / "ds")
        ),
        "datatrove": contender(
            folder, "datatrove", arguments.peer_python, files=few, tokenizer=tokenizer, out=str(folder / "dt")
        ),
    }
    result: dict[str, Any] = {
        "ours": ours,
        "ours on Ray": on_ray,
        "gigatoken": alone,
        "ours, text once": contender(
            folder, "tokenize", files=once, tokenizer=tokenizer, out=str(folder / "little"), ray=False
        ),
        "peers": peers,
    }
    medians = {
        "ratios": middle(ours),
        "ratios on Ray": middle([steady(turn) for turn in on_ray]),
        "ratios on Ray with its start": middle(on_ray),
    }
    for name, median in medians.items():
        for key, kind in (("mb_per_second", name), ("mb_per_cpu_second", f"{name}, CPU time")):
            result[kind] = {peer: ratio(median, figures, key) for peer, figures in peers.items()}
    return result


def train(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A 32K vocabulary on the corpus, and on the corpus ten times."""
    once, ten = copies(arguments.corpus, folder / "once", 1), copies(arguments.corpus, folder / "ten", 10)
    ours = contender(folder, "train", files=once, out=str(folder / "ours"), vocab_size=32768)
    on_ray = contender(folder, "train", files=once, out=str(folder / "ours_on_ray"), vocab_size=32768, ray=True)
    repeated = contender(folder, "train", files=ten, out=str(folder / "ours10"), vocab_size=32768, ray=True)
    peer = contender(folder, "train_tokenizers", files=once, out=str(folder / "theirs.json"), vocab_size=32768)
    result: dict[str, Any] = {
        "ours": ours,
        "ours on Ray": on_ray,
        "ours on Ray, text ten times": repeated,
        "tokenizers": peer,
    }
    if "seconds" in peer and "seconds" in ours:
        merges = [
            json.loads((folder / name).read_bytes())["model"]["merges"]
            for name in ("ours/tokenizer.json", "theirs.json")
        ]
        result["identical merges"] = merges[0] == merges[1]
        result["times faster"] = ratio(ours, peer)
        result["times faster in CPU time"] = ratio(ours, peer, "mb_per_cpu_second")
        result["share of its peak memory"] = ratio(ours, peer, "peak_mb")
        result["times faster on Ray"] = ratio(on_ray, peer)
        result["times faster on Ray without its start"] = ratio(steady(on_ray), peer)
    return result


def scale(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Cost a MB on Ray as the text grows, its start taken off and shown; and two cores against one, in turns with what
    the machine's two cores make of counting."""
    tokenizer = str(folder / "tokenizer" / "tokenizer.json")
    result: dict[str, Any] = {}
    for times in (1, arguments.times, *([arguments.largest] if arguments.largest else [])):
        files = copies(arguments.corpus, folder / f"scale{times}", times)
        out = str(folder / f"scaled{times}")
        result[f"{times} x"] = contender(folder, "tokenize", files=files, tokenizer=tokenizer, out=out)
    files = copies(arguments.corpus, folder / f"scale{arguments.times}", arguments.times)
    text: dict[str, Any] = {"files": files, "tokenizer": tokenizer, "ray": False}
    encoding, counting = [], []
    for turn in range(arguments.turns):
        one, two = (
            contender(folder, "tokenize", turn=turn, **text, out=str(folder / f"cores{cpus}"), cpus=cpus)
            for cpus in (1, 2)
        )
        spun = [contender(folder, "spin", turn=turn, processes=processes) for processes in (1, 2)]
        encoding.append(ratio(two, one))
        counting.append(ratio(spun[1], spun[0], "rounds_per_second"))
    result["two cores against one"] = {"encoding": encoding, "counting": counting}
    return result


def seek(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A synthetic manifest of 14.8T tokens in 100,000 shards: time to a sample's place, memory of the index."""
    return contender(
        folder, "seek", shards=100_000, tokens=14_800_000_000_000, seq_len=SEQ_LEN, out=str(folder / "seek")
    )


def read(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Samples a second of one shuffled reader, at the start and far on, beside memcpy and MosaicML Streaming."""
    corpus = finished(arguments, folder)
    ours = contender(folder, "read", corpus=str(corpus), seq_len=SEQ_LEN)
    peer = contender(
        folder, "mosaic", arguments.peer_python, corpus=str(corpus), seq_len=SEQ_LEN, out=str(folder / "mds")
    )
    return {
        "ours": ours,
        "mosaicml-streaming": peer,
        "times faster": ratio(ours, peer, "samples_per_second"),
        "times faster in CPU time": ratio(ours, peer, "samples_per_cpu_second"),
    }


def loader(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Samples a second that training gets, beside the bare token values and with the byte lengths of evaluation."""
    return contender(folder, "loader", corpus=str(finished(arguments, folder)), seq_len=SEQ_LEN)


def finished(arguments: argparse.Namespace, folder: Path) -> Path:
    """A corpus to read."""
    corpus = folder / "read"
    if not (corpus / "manifest.json").exists():
        files = copies(arguments.corpus, folder / "scale1", 1)
        contender(
            folder, "tokenize", files=files, tokenizer=str(folder / "tokenizer" / "tokenizer.json"), out=str(corpus)
        )
    return corpus


def copies(corpus: Path, folder: Path, times: int) -> list[str]:
    """The corpus's files, `times` over: copies, since a file that is linked to is read once, whatever its names."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(times):
        for path in sorted(corpus.glob("*.parquet")):
            copy = folder / f"{path.stem}-{number:05d}.parquet"
            if not copy.exists():
                shutil.copyfile(path, copy)
    return sorted(str(path) for path in folder.glob("*.parquet"))


ROWS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "encode": encode,
    "train": train,
    "scale": scale,
    "seek": seek,
    "read": read,
    "loader": loader,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="which rows of the table (all)")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of Parquet files with a column `text`")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3, help="of ours and gigatoken alone; the median counts")
    parser.add_argument("--peer-files", nargs="*", default=["fastapi-docs.parquet"])
    parser.add_argument("--peer-python", default=sys.executable, help="has datatrove, mosaicml-streaming and Shoal")
    parser.add_argument("--largest", type=int, help="`scale` also takes the corpus so often (100 is 8 GB)")
    parser.add_argument("--out", type=Path, default=Path("data.json"))
    parser.add_argument("--work", type=Path, help="folder for what is built and found, kept for the next run")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"cores": os.cpu_count(), "time": time.time()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.work or Path(scratch)
        for row in arguments.rows or ROWS:
            if row in ("encode", "scale", "read", "loader") and not (folder / "tokenizer").exists():
                once = copies(arguments.corpus, folder / "once", 1)
                contender(folder, "train", files=once, out=str(folder / "tokenizer"), vocab_size=32768)
            print(row, flush=True)
            results[row] = ROWS[row](arguments, folder)
            arguments.out.write_text(json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
