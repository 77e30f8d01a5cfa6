"""What a file is, by its name: Parquet, Arrow, JSON lines or a text, compressed or not, or nothing that is read."""

from __future__ import annotations

__all__ = ["ARROW", "JSON_LINES", "PACKED", "PARQUET", "extensions", "format_of", "is_packed", "refusal"]

JSON_LINES = (".jsonl", ".ndjson", ".json", ".jsonlines", ".jl", ".ldjson")
PARQUET = (".parquet", ".pq", ".parq")
ARROW = (".arrow", ".ipc", ".feather")
PACKED = (".gz", ".zst")

#: extensions that are not read, by what to do about them; whatever is not here is text
_REFUSED = {
    "write it as Parquet first: python -c \"import pandas; pandas.read_csv('FILE').to_parquet('FILE.parquet')\"": (
        ".csv .tsv .psv .xlsx .xls .ods .avro .orc .h5 .hdf5 .dta .sav .rds"
    ),
    "unpack it first": ".zip .tar .tgz .tbz .tbz2 .txz .tzst .7z .rar .iso .jar .whl .deb .rpm",
    "unpack it, or pack it anew as .gz or .zst": ".bz2 .xz .lz4 .lzma .br .snappy .sz .lzo .z",
    "rename it to .gz or .zst": ".gzip .zstd",
    "write its text to .txt or .jsonl first": ".pdf .doc .docx .odt .rtf .epub .mobi .ppt .pptx .odp .djvu .ps",
    "write the text of its records to .jsonl first": ".warc .wet .wat .arc .mbox .tfrecord .tfrecords .mds .lance",
    "write the text it holds to .parquet or .jsonl first": ".sqlite .sqlite3 .db .duckdb .mdb .lmdb .pkl .pickle",
    "leave it out: it holds no text": (
        ".png .jpg .jpeg .gif .bmp .tif .tiff .webp .heic .ico .mp3 .mp4 .m4a .wav .flac .ogg .webm .mov .avi .mkv "
        ".npy .npz .pt .pth .bin .safetensors .gguf .onnx .ckpt .mat .so .o .a .dll .exe .pyc .class .wasm "
        ".ttf .otf .woff .woff2 .idx .index .faiss"
    ),
    "finish the download or the copy, or leave it out": ".part .partial .crdownload .incomplete .tmp .swp .lock",
}
_TABLES = (*PARQUET, *ARROW, *JSON_LINES)
_REMEDIES = {extension: remedy for remedy, names in _REFUSED.items() for extension in names.split()}


def extensions(path: str) -> list[str]:
    """The extensions of a path in lower case, the last one first.

    >>> extensions("in/Web.v1.JSONL.gz")
    ['.gz', '.jsonl', '.v1']
    """
    name = path.rpartition("/")[2].lstrip(".").lower()
    return [f".{extension}" for extension in reversed(name.split(".")[1:])]


def is_packed(path: str) -> bool:
    """Whether it is compressed as a whole."""
    return path.lower().endswith(PACKED)


def format_of(path: str) -> str:
    """`parquet`, `arrow`, `jsonl` or `text`."""
    found = [extension for extension in extensions(path) if extension not in PACKED][:1]
    if found and found[0] in PARQUET:
        return "parquet"
    if found and found[0] in ARROW:
        return "arrow"
    return "jsonl" if found and found[0] in JSON_LINES else "text"


def refusal(path: str) -> tuple[str, str] | None:
    """Why a file is not read, and what to do about it; None if it is.

    >>> refusal("in/a.csv.gz")[0]
    '.csv is not read'
    """
    last, before = [*extensions(path), "", ""][:2]
    if last in PACKED:
        if before in PARQUET:
            return f"Parquet within {last} is not read", f"unpack it: Parquet is compressed in itself ({last} on top)"
        if before in ARROW:
            return f"Arrow within {last} is not read", "unpack it: a compressed Arrow file cannot be cut into parts"
        last, before = before, ""
    if last in _REMEDIES:
        return f"{last} is not read", _REMEDIES[last]
    if before in _TABLES and before != ".json" and last not in _TABLES:
        return f"{before} or {last}?", f"rename it so that it ends in {before}, if it is that, or leave it out"
    return None
