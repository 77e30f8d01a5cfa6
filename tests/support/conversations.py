"""A small tokenizer with chat templates, and conversations for it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (  # the same words; answers are marked, each with its end of turn
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FORGETFUL = (  # as templates of reasoning models do: only the last answer keeps what it thought
    "{% for message in messages %}{% set content = message['content'] %}"
    "{% if message['role'] == 'assistant' and not loop.last %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXT = "the a small large red blue fish swims runs under over near river sea stone boat and then it was seen"


def write_tokenizer(folder: Path, template: str | None = CHATML, vocab_size: int = 320) -> Path:
    """A byte-level BPE tokenizer in a Hugging Face folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator([_TEXT] * 4, trainer)
    of = PreTrainedTokenizerFast(
        tokenizer_object=built, eos_token="<|endoftext|>", additional_special_tokens=special[1:]
    )
    if template is not None:
        of.chat_template = template
    of.save_pretrained(str(folder))
    return folder


def conversations(count: int, seed: int = 0, turns: int = 3) -> list[dict[str, Any]]:
    """Rows of `messages` of 1 to `turns` questions; the answer to a question is its words the other way round."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        messages = [{"role": "system", "content": "Turn it round."}] if draw.random() < 0.5 else []
        for _ in range(draw.randint(1, turns)):
            words = draw.choices(_TEXT.split(" "), k=draw.randint(1, 6))
            messages.append({"role": "user", "content": " ".join(words)})
            messages.append({"role": "assistant", "content": " ".join(reversed(words))})
        rows.append({"messages": messages})
    return rows


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """Rows as JSON lines; a row that is text is written as it stands."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path
