"""Makes tokenizer.json files of the shapes that the world has, and text on which encoders differ."""

from __future__ import annotations

import json
import random
import string
import unicodedata
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pt

from shoal_data.tokenizer.fast_rules import FAST_PATTERNS

TEXTS = [
    "The quick brown fox jumps over the lazy dog; don't you know? I'LL say: it's 12345 o'clock.\n\n",
    "def encode(self, text: str) -> list[int]:\n    if not text:\n        return []\n\treturn self.walk(text)[1:]\n",
    "Köln ist schön, Straße. Ünïcode café naïve. Привет, мир! Ελληνικά. ",
    "東京は2024年も人口1,396万人です。ひらがな カタカナ 한국어 텍스트 中文字符，标点。\r\n",
    "नमस्ते दुनिया العربيّة ภาษาไทยน้ำ 😀👍🏽 “quoted” — dash… €5.00\n",
] * 8
SPECIAL = ["<|endoftext|>", "<|pad|>"]
NASTY = [
    *"aeiou AZ09\t\n\r\0\u00a0\u3000\u2028\u0085\u200b\u200d.,;:!?'\"()[]{}<>|/\\@#$%^&*-_=+~`",
    *(
        "'s",
        "'S",
        "'ſ",
        "'ll",
        "'LL",
        "don't",
        "I'M",
        "\r\n",
        "\n\n",
        "  ",
        "   ",
        " " * 9,
        ".\n",
        ";\r\n",
        "//\n",
        " \n ",
    ),
    *(
        "12",
        "123",
        "1234",
        "٣٤٥٦",
        "½",
        "Ⅷ",
        "๑๒๓๔",
        "𝟏𝟐",
        "é",
        "e\u0301",
        "q\u0323\u0307",
        "\u0301",
        "\u0300\u0316",
        "Å",
        "\u212b",
        "ﬁ",
        "ſ",
    ),
    *(
        "東京",
        "の",
        "カ",
        "한",
        "\u1112\u1161\u11ab",
        "ไทย",
        "น้ำ",
        "नि",
        "क्षि",
        "ع",
        "مُ",
        "ש",
        "ß",
        "Ǆ",
        "ǅ",
        "ʰ",
        "ª",
        "ᲥᲐ",
        "Ⴀ",
    ),
    *(
        "😀",
        "👩\u200d👩",
        "🇩🇪",
        "❤\ufe0f",
        "€",
        "№",
        "™",
        "∑",
        "—",
        "“",
        "。",
        "\ue000",
        "\ufffd",
        "\uffff",
        "\U000f0000",
    ),
    *(
        "<|endoftext|>",
        "<|pad|>",
        "</s>",
        "<s>",
        "<unk>",
        "<0x41>",
        "▁",
        "▁▁",
        "Ġ",
        "Ċ",
        "the",
        " the",
        "The",
        "return",
        "<think>",
    ),
]


REPLACE = normalizers.Replace(" ", "▁")
BYTES = pt.ByteLevel(add_prefix_space=False)


def nasty(seed: int, count: int = 400) -> list[str]:
    """Documents of up to 30 pieces: of `NASTY`, of any code point, of words."""
    draw = random.Random(seed)

    def piece() -> str:
        kind = draw.random()
        if kind < 0.75:
            return draw.choice(NASTY)
        if kind < 0.85:
            return "".join(draw.choices(string.ascii_letters, k=draw.randint(1, 12)))
        one = chr(draw.choice([draw.randrange(0x3000), draw.randrange(0x10000), draw.randrange(0x110000)]))
        # Of characters that Unicode 17 brought, gigatoken knows the kind already, and `tokenizers` does not.
        return one if unicodedata.category(one) not in ("Cs", "Cn") else " "

    return ["".join(piece() for _ in range(draw.randint(0, 30))) for _ in range(count)]


def trained(tokenizer: Tokenizer, special: list[str], alphabet: list[str], vocab_size: int = 700) -> dict[str, Any]:
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    config: dict[str, Any] = json.loads(tokenizer.to_str())
    return config


def cut(*patterns: str) -> pt.PreTokenizer:
    """The pre-tokenizer of a byte-level tokenizer that is cut by patterns, as tokenizer.json files have it."""
    splits = [pt.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pt.Sequence([*splits, pt.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_level(pre: pt.PreTokenizer | None = None, special: list[str] = SPECIAL, **edit: Any) -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre or pt.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return {**trained(tokenizer, special, pt.ByteLevel.alphabet()), **edit}


def byte_fallback(normalizer: normalizers.Normalizer | None, pre: pt.PreTokenizer | None) -> dict[str, Any]:
    """A SentencePiece BPE: characters, and a token for each byte of those it lacks."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pt.Split("▁", "merged_with_next")
    special = ["<unk>", "<s>", "</s>"]
    config = trained(tokenizer, [*special, *(f"<0x{byte:02X}>" for byte in range(256))], [], 900)
    config["added_tokens"] = [token for token in config["added_tokens"] if token["content"] in special]
    holder = Tokenizer(models.BPE())
    if normalizer is not None:
        holder.normalizer = normalizer
    if pre is not None:
        holder.pre_tokenizer = pre
    edit = json.loads(holder.to_str())
    return {**config, "normalizer": edit["normalizer"], "pre_tokenizer": edit["pre_tokenizer"]}


def with_added(config: dict[str, Any], *contents: str, **flags: Any) -> dict[str, Any]:
    """With further added tokens, under their ids in the vocabulary or those that follow."""
    vocab = config["model"]["vocab"]
    last = max([*vocab.values(), *(token["id"] for token in config["added_tokens"])])
    plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=False) | flags
    more = []
    for content in contents:
        last += content not in vocab
        more.append({"id": vocab.get(content, last), "content": content, **plain})
    return {**config, "added_tokens": [*config["added_tokens"], *more]}


def with_model(config: dict[str, Any], **edit: Any) -> dict[str, Any]:
    return {**config, "model": {**config["model"], **edit}}


def llama3() -> dict[str, Any]:
    """Whole words that no merges make, as `ignore_merges` finds them."""
    config = byte_level(cut(*FAST_PATTERNS["cl100k"]), [])
    vocab = config["model"]["vocab"]
    for name in ("Ġlazily", "encoder", "Ġ東京", "ĠĠĠ"):
        vocab.setdefault(name, len(vocab))
    config["model"]["ignore_merges"] = True
    return with_added(config, "<|begin_of_text|>", "<|end_of_text|>", special=True)


def deepseek_v3() -> dict[str, Any]:
    config = byte_level(cut(*FAST_PATTERNS["deepseek-v3"]), ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"])
    return with_added(config, "<｜User｜>", "<think>")


def roberta() -> dict[str, Any]:
    """Ids by frequency, not by rank."""
    config = byte_level()
    vocab = config["model"]["vocab"]
    names = sorted(set(vocab) - set(SPECIAL))
    random.Random(0).shuffle(names)
    return with_model(config, vocab={**{name: at for at, name in enumerate(names, 2)}, SPECIAL[0]: 0, SPECIAL[1]: 1})


def qwen2() -> dict[str, Any]:
    """Text in NFC, and added tokens that are text."""
    config = byte_level(cut(*FAST_PATTERNS["qwen2"]), normalizer={"type": "NFC"})
    return with_added(config, "<think>", "<tool_call>")


def gemma() -> dict[str, Any]:
    """Byte fallback without a space before the text."""
    config = byte_fallback(REPLACE, pt.Split(" ", "merged_with_previous"))
    return with_added(config, "\n\n", "\n\n\n", "▁▁")


def own_pattern() -> dict[str, Any]:
    """A pattern that no one else has."""
    return byte_level(cut(r"\p{L}+|[^\p{L}]"))
