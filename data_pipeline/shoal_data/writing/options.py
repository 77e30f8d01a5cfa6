"""What a corpus is made with: settings that are recorded in its manifest."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from shoal_core.errors import UserError
from shoal_data.reading.order import ROUND, turns_of

__all__ = ["Recipe", "TokenizeOptions"]

_MOST_PART_BYTES = 16 << 30


@dataclass(frozen=True)
class Recipe:
    """How documents become the stream; recorded in the manifest.

    Attributes:
        seed: names everything random.
        shuffle: order documents by the seed: parts among each other, and documents within their part.
        bos: begin each document with the tokenizer's beginning-of-text token.
        fim_rate: share of documents in fill-in-the-middle order (DeepSeek-V3: 0.1).
        split_rate: share of tokens joining punctuation and line breaks that are split (unpublished for V3).
        deduplicate: leave out documents whose content came before.
        weights: mixture weight by source, or empty to take every token once an epoch.
        strict: broken input is an error instead of a line in `quarantine.jsonl`.
    """

    seed: int = 0
    shuffle: bool = False
    bos: bool = False
    fim_rate: float = 0.0
    split_rate: float = 0.0
    deduplicate: bool = False
    weights: dict[str, float] | None = None
    strict: bool = False

    def check(self) -> None:
        """Raises UserError on a setting out of range."""
        for name in ("fim_rate", "split_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} is no share", "choose 0 to 1")
        if abs(self.seed) >= 1 << 63:
            raise UserError(f"--seed {self.seed} has more than 64 bits", "choose a smaller one")
        for source, weight in (self.weights or {}).items():
            if not 0 < weight < math.inf:
                remedy = "choose a number above 0, or leave the source out of --input"
                raise UserError(f"--mixture {source}={weight}: no weight", remedy)
        if not math.isfinite(sum((self.weights or {}).values())):
            raise UserError("--mixture: the weights add up to no number", "choose smaller ones: only shares count")
        if self.weights:
            share = {source: weight / sum(self.weights.values()) for source, weight in self.weights.items()}
            least = min(share, key=lambda source: share[source])
            if not share[least] or not turns_of(list(share.values())).min():
                raise UserError(
                    f"--mixture: {least} has a share of {share[least]:.2g}, less than a turn in {ROUND:,}, so it would "
                    "never be read",
                    "weigh it more, or leave the source out of --input",
                )


@dataclass(frozen=True)
class TokenizeOptions:
    """What the corpus is made from; recorded in its manifest.

    Attributes:
        column: column or field that holds the text, within structs and objects by its path (`a.b`).
        join: what is put between the strings of a list, where the column holds lists.
        split: which of the datasets of a folder that `datasets` wrote, where there are several.
        part_bytes: bytes of text a task works on; 0 to choose by the size of the text.
        recipe: what happens to documents on the way.
    """

    column: str = "text"
    part_bytes: int = 0
    recipe: Recipe = field(default_factory=Recipe)
    join: str | None = None
    split: str | None = None

    def check(self) -> None:
        """Raises UserError on a setting out of range."""
        if not 0 <= self.part_bytes <= _MOST_PART_BYTES:
            raise UserError(
                f"--part-bytes {self.part_bytes}: a part is held in memory", f"choose 1 to {_MOST_PART_BYTES}, or 0"
            )
        self.recipe.check()
