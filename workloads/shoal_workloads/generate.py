"""Greedy or sampled continuation of a prompt, with the MTP modules as an own draft head if asked (report, section 2.2).

Nothing is cached between tokens: a step runs the whole text through the model. This is for looking at what a model has
learnt; to serve one, export it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shoal_workloads.model.deepseek import DeepSeekV3

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
    text, draft = list(prompt), list[int]()
    passes = drafted = accepted = 0
    while len(text) - len(prompt) < count and (end is None or text[-1] != end or len(text) == len(prompt)):
        tokens = torch.tensor([text + draft])
        hidden = model.hidden(tokens)
        logits = model.head(hidden)[0].float()
        passes += 1
        new: list[int] = []
        for guess in [*draft, None]:  # position len(text)-1+j predicts the j-th draft, the last one a token beyond
            chosen = _choose(logits[len(text) - 1 + len(new)], temperature, generator)
            new.append(chosen)
            if chosen != guess:
                break
        drafted, accepted = drafted + len(draft), accepted + len(new) - 1
        kept = len(text) + len(new) - 1  # positions whose hidden states are those of the text that stays
        if end is not None and end in new:
            new = new[: new.index(end) + 1]
        text += new
        draft = _draft(model, torch.tensor([text]), hidden[:, :kept]) if speculative else []
        draft = draft[: max(0, count - (len(text) - len(prompt)) - 1)]
    return Generated(text[len(prompt) : len(prompt) + count], passes, drafted, accepted)


def _choose(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    """logits: (V,) -> a token."""
    if temperature <= 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(0).cpu(), 1, generator=generator))


def _draft(model: DeepSeekV3, tokens: torch.Tensor, hidden: torch.Tensor) -> list[int]:
    """Guess the tokens after the next one. tokens: (1, n+1); hidden: (1, n, D), the main model's after its final norm.

    Module k takes depth k-1's states at i and the token at i+k, and guesses token i+k+1: each guess is the next
    module's token."""
    guesses: list[int] = []
    length = hidden.shape[1]
    rope = model.rope(length, tokens.device)
    ahead = tokens[:, 1:]  # (1, n): token i+1 at position i
    for module in model.mtp:
        hidden, _, _ = module(hidden, model.embed(ahead[:, :length]), rope)
        guess = int(model.head(hidden[:, -1]).argmax())
        guesses.append(guess)
        ahead = torch.cat([ahead[:, 1:], torch.tensor([[guess]], device=tokens.device)], dim=1)
    return guesses
