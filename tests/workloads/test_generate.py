"""Generation from cached latents is generation from the whole text."""

from __future__ import annotations

import pytest
import torch

from shoal_workloads.generate import _Drafter, generate
from shoal_workloads.model.config import ModelConfig
from shoal_workloads.model.deepseek import DeepSeekV3
from shoal_workloads.model.latent_cache import LatentCache
from shoal_workloads.model.presets import from_dial


def model_of(seed: int, **fields: object) -> DeepSeekV3:
    torch.manual_seed(seed)
    model = DeepSeekV3(ModelConfig.model_validate(from_dial(32, 3, 8, 40) | fields))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1.0 if p.dim() == 1 else 0.0, 0.15)
    return model


YARN = {"factor": 4.0, "original_length": 8}


@pytest.mark.parametrize("fields", [{}, {"d_q": None}, {"yarn": YARN}])
@torch.no_grad()
def test_hidden_states_in_pieces(fields: dict[str, object]) -> None:
    model = model_of(0, **fields)
    tokens = torch.randint(40, (2, 23))
    past = [LatentCache() for _ in model.layers]
    pieces = [model.hidden(part, past) for part in tokens.split([9, 1, 1, 12], dim=1)]
    assert [len(cache) for cache in past] == [23] * 3
    assert torch.allclose(torch.cat(pieces, dim=1), model.hidden(tokens), atol=1e-5)
    for cache in past:
        cache.cut(10)
    assert torch.allclose(model.hidden(tokens[:, 10:], past), model.hidden(tokens)[:, 10:], atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
@torch.no_grad()
def test_greedy_tokens_with_and_without_drafts(depth: int) -> None:
    """Against the likeliest token of the whole text, run anew for each; drafts of a random model are mostly wrong."""
    model, text = model_of(depth, mtp_depth=depth), [3, 1, 4, 1, 5]
    for _ in range(24):
        text.append(int(model.logits(torch.tensor([text]))[0, -1].argmax()))
    assert generate(model, text[:5], 24).tokens == text[5:]
    drafted = generate(model, text[:5], 24, speculative=True)
    assert drafted.tokens == text[5:]
    assert drafted.drafted > 0
    assert drafted.passes + drafted.accepted == 24


@torch.no_grad()
def test_drafts_are_those_of_the_modules_on_the_whole_text() -> None:
    """Every draft against the MTP chain run from the start, without caches."""
    model, asked = model_of(7, mtp_depth=2), []
    drafter, past = _Drafter(model), [LatentCache() for _ in model.layers]
    text, given = torch.randint(40, (15,)).tolist(), 0
    for end in (6, 7, 10, 14):  # positions of the main model that are known, growing by more than one at a time
        hidden = model.hidden(model.tokens(text[given:end]), past)
        asked.append(drafter.draft(text[: end + 1], hidden))
        given = end
        states, ahead = model.hidden(model.tokens(text[:end])), text[1 : end + 1]
        expected = []
        for module in model.mtp:
            states, _, _ = module(states, model.embed(model.tokens(ahead)), model.rope(end, states.device))
            expected.append(int(model.head(states[:, -1]).argmax()))
            ahead = [*ahead[1:], expected[-1]]
        assert asked[-1] == expected
