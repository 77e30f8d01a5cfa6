"""The examples of docs/examples, whose steps take their time, so that somebody can be killed in the midst of one."""

from __future__ import annotations

import time
from typing import Any

from docs.examples import causal_lm, digits, gpt

__all__ = ["GPT", "CausalLM", "Digits"]

SECONDS = 0.04
"""That a micro-batch takes longer."""


class GPT(gpt.GPT):
    def loss(self, model: Any, batch: Any) -> tuple[Any, ...]:
        time.sleep(SECONDS)
        return super().loss(model, batch)


class CausalLM(causal_lm.CausalLM):
    def loss(self, model: Any, batch: Any) -> tuple[Any, ...]:
        time.sleep(SECONDS)
        return super().loss(model, batch)


class Digits(digits.Digits):
    def loss(self, model: Any, batch: Any) -> tuple[Any, ...]:
        time.sleep(SECONDS)
        return super().loss(model, batch)
