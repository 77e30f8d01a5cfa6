"""Greedy or sampled continuation of a prompt, with the MTP modules as an own draft head if asked (report, section 2.2).

Past tokens are kept as latents, a cache a layer, so that a step runs only new tokens through the model. This is for
looking at what a model has learnt; to serve one, export it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shoal_workloads.model.deepseek import DeepSeekV3
from shoal_workloads.model.latent_cache import LatentCache

__all__ = ["Generated", "generate"]


@dataclass(frozen=True)
class Generated:
    """tokens: the new ones. passes: runs of the main model. drafted, accepted: tokens that MTP proposed, and those of
    them that the main model would have chosen."""

    tokens: list[int]
    passes: int
    drafted: int
    accepted: int

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that were accepted; 0 without drafts."""
        return self.accepted / self.drafted if self.drafted else 0.0


@torch.no_grad()
def generate(
    model: DeepSeekV3,
    prompt: list[int],
    count: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    speculative: bool = False,
    end: int | None = None,
) -> Generated:
    """Continue `prompt` (at least one token) by up to `count` tokens, or to the token `end`.

    temperature 0 is greedy. `speculative`: MTP drafts up to mtp_depth tokens, which one run of the main model checks
    together with the next; greedy output is exactly that of the model alone, so speculation needs temperature 0.

    Raises:
        ValueError: an empty prompt, or speculation with a temperature.
    """
    if not prompt:
        raise ValueError("the prompt is empty")
    if speculative and temperature > 0:
        raise ValueError("speculative decoding is greedy: leave the temperature at 0")
    generator = torch.Generator().manual_seed(seed)
    past, drafter = [LatentCache() for _ in model.layers], _Drafter(model)
    text, draft = list(prompt), list[int]()
    passes = drafted = accepted = 0
    while len(text) - len(prompt) < count and (end is None or text[-1] != end or len(text) == len(prompt)):
        known = len(past[0])  # positions run before; all of the text but its last token, or none at first
        hidden = model.hidden(model.tokens(text[known:] + draft), past)
        logits = model.head(hidden[:, len(text) - 1 - known :])[0].float()
        passes += 1
        new: list[int] = []
        for row, guess in zip(logits, [*draft, None], strict=True):  # a row for each draft, and one for a token beyond
            new.append(_choose(row, temperature, generator))
            if new[-1] != guess:
                break
        drafted, accepted = drafted + len(draft), accepted + len(new) - 1
        kept = len(text) + len(new) - 1  # positions whose token is one of the text that stays
        for cache in past:
            cache.cut(kept)
        if end is not None and end in new:
            new = new[: new.index(end) + 1]
        text += new
        if speculative and len(text) == kept + 1:
            wanted = count - (len(text) - len(prompt)) - 1
            draft = drafter.draft(text, hidden[:, : kept - known])[: max(0, wanted)]
    return Generated(text[len(prompt) : len(prompt) + count], passes, drafted, accepted)


def _choose(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    """logits: (V,) -> a token."""
    if temperature <= 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(0).cpu(), 1, generator=generator))


class _Drafter:
    """The MTP chain with its caches. Module k takes depth k-1's state at i and the token at i+k, and guesses token
    i+k+1: each guess is the next module's token, so that the last k-1 positions of module k rest on guesses and are run
    again when the tokens are known."""

    def __init__(self, model: DeepSeekV3) -> None:
        self.model = model
        self.past = [LatentCache() for _ in model.mtp]
        self.states: list[torch.Tensor | None] = [None for _ in range(len(model.mtp) + 1)]

    def draft(self, text: list[int], hidden: torch.Tensor) -> list[int]:
        """Guess the tokens after `text` (n+1 tokens). hidden: the main model's states after its final norm at the
        positions up to n-1 that were not given before: (1, m, D)."""
        self._replace(0, len(text) - 1 - hidden.shape[1], hidden)
        tokens, length = list(text), len(text) - 1
        for k, (module, cache) in enumerate(zip(self.model.mtp, self.past, strict=True), start=1):
            first, below = len(cache), self.states[k - 1]
            assert below is not None
            embedded = self.model.embed(self.model.tokens(tokens[first + k : length + k]))
            rope = self.model.rope(length - first, embedded.device, first)
            states, _, _ = module(below[:, first:], embedded, rope, cache)
            self._replace(k, first, states)
            tokens.append(int(self.model.head(states[:, -1]).argmax()))
            cache.cut(max(0, length + 1 - k))  # up to where token i+k is one of the text
        return tokens[len(text) :]

    def _replace(self, depth: int, first: int, states: torch.Tensor) -> None:
        """The states of a depth from position `first` on."""
        before = self.states[depth]
        self.states[depth] = states if before is None else torch.cat([before[:, :first], states], dim=1)
