"""Raw text to a finished corpus: one Ray Data task a part, each part done once or not at all.

A part's shard has a fixed name and appears by a rename; the part's record, `job/<part>.json`, appears after it. So a
job killed at any moment and run again does what has no record, and the corpus is byte for byte what an undisturbed
run makes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoal_core.errors import StoreError, UserError
from shoal_data.files import sweep_temporary, write_whole
from shoal_data.jobs.claim import FORMAT, as_recorded, belongs, check_out, claim, difference
from shoal_data.jobs.imports import import_early
from shoal_data.jobs.lock import held
from shoal_data.jobs.session import RaySession
from shoal_data.jobs.tasks import run_parts, use_ray
from shoal_data.place import Place, address_of, place_at
from shoal_data.reading.manifest import MANIFEST, Manifest
from shoal_data.reading.verify import verify
from shoal_data.sources.gather import check_apart
from shoal_data.sources.parts import Part, plan_parts
from shoal_data.tokenizer.encoder import Encoder, load_encoder
from shoal_data.writing.duplicates import find_duplicates
from shoal_data.writing.encode_part import encode_part, part_records
from shoal_data.writing.finish import finish, specials_of
from shoal_data.writing.options import Recipe, TokenizeOptions

__all__ = ["tokenize"]


def tokenize(inputs: Sequence[str], tokenizer: str | Path, out: str | Path, options: TokenizeOptions) -> Manifest:
    """Encode the files that the globs `inputs` name into the corpus folder `out`.

    Run again after it was killed, or after a file of the finished corpus was lost or damaged, it does what is missing;
    run again after it finished, it does nothing.

    Raises:
        UserError: nothing matches, the tokenizer cannot be used, `out` holds another corpus or another job is at work
            there, a setting is out of range, nothing can be written, no document can be read, or (strict) bad input.
        StoreError: a store did not give what it holds; what is done stays.
    """
    options.check()
    corpus = check_out(out)
    check_apart(inputs, str(out))
    _check_file(tokenizer)
    import_early()
    with RaySession() as session:  # a cluster that is named is joined meanwhile
        parts = plan_parts(inputs, options.column, options.part_bytes, join=options.join, split=options.split)
        _check_sources(options.recipe, parts)
        use_ray(session, _missing(corpus, parts), wait=False)
        encoder = load_encoder(tokenizer)
        specials_of(encoder, options.recipe)
        plan = {
            "format": FORMAT,
            "tokenizer": encoder.digest,
            "options": as_recorded(options),
            "parts": [part.to_json() for part in parts],
        }
        job = json.loads(json.dumps(plan))
        if finished := _finished(corpus, parts, job):
            return finished
        for line in encoder.says:
            print(f"{tokenizer}: {line}", file=sys.stderr)
        with held(corpus):
            claim(corpus, job, ["shards/*.arrow", MANIFEST])
            for folder in (corpus, corpus / "job", corpus / "shards"):
                sweep_temporary(folder)
            write_whole(corpus / "tokenizer.json", place_at(tokenizer).read_bytes())
            if missing := _missing(corpus, parts):
                use_ray(session, missing, wait=True)
                _encode(corpus, parts, missing, encoder, options)
            return finish(corpus, parts, encoder, options)


def _check_file(tokenizer: str | Path) -> None:
    if not place_at(tokenizer).is_file():
        raise UserError(f"--tokenizer {tokenizer}: no such file", "give --tokenizer DIR/tokenizer.json")


def _check_sources(recipe: Recipe, parts: Sequence[Part]) -> None:
    """Raises UserError where the mixture's sources are not those of the inputs."""
    sources = {part.source for part in parts}
    unknown = set(recipe.weights or {}) ^ sources
    if recipe.weights and unknown:
        raise UserError(
            f"--mixture: {', '.join(sorted(unknown))} is weighted but not among the inputs, or the other way round",
            f"weigh each of {', '.join(sorted(sources))}",
        )


def _missing(corpus: Place, parts: Sequence[Part]) -> list[Part]:
    """The parts that have no record, or whose shard is gone."""
    return [part for part, record in zip(parts, part_records(corpus, parts), strict=True) if record is None]


def _finished(corpus: Place, parts: Sequence[Part], job: dict[str, Any]) -> Manifest | None:
    """The manifest, if `job` has been done and all of its files stand."""
    if not (belongs(corpus) and (corpus / MANIFEST).exists()) or _missing(corpus, parts):
        return None
    try:
        if difference(json.loads((corpus / "job" / "job.json").read_bytes()), job):
            return None
        return verify(address_of(corpus), full=False)
    except StoreError:
        raise
    except UserError as error:
        print(f"{error.problem}: it is written anew from what the parts recorded", file=sys.stderr)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # job.json is damaged, as `claim` will say
    return None


def _encode(
    corpus: Place, parts: Sequence[Part], missing: Sequence[Part], encoder: Encoder, options: TokenizeOptions
) -> None:
    """Do the parts that are missing."""
    settings = {
        "corpus": address_of(corpus),
        "tokenizer": address_of(corpus / "tokenizer.json"),
        "digest": encoder.digest,
        "engine": encoder.engine,
        "column": options.column,
        "join": options.join,
        "recipe": asdict(options.recipe),
    }
    job = corpus / "job"
    if options.recipe.deduplicate:
        find_duplicates(parts, options.column, options.join, job)
    run_parts("tokenize", encode_part, missing, settings, ["documents", "tokens"], job)
