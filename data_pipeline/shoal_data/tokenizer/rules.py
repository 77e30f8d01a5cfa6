"""What a `tokenizer.json` asks of an encoder, by whole classes and from the file alone.

A tokenizer is taken if text comes back from its tokens byte for byte: BPE over bytes, or over characters with a token
for every byte that has none (byte fallback). All others are refused, by the name of what they do.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import PreTokenizer

from shoal_core.errors import UserError
from shoal_data.tokenizer.byte_level import byte_of_character, spell
from shoal_data.tokenizer.special import is_control

__all__ = ["BYTE_TOKENS", "SPACE", "Rules", "flat", "rules_of", "stays_whole", "token_texts"]

#: SentencePiece's mark of a space
SPACE = "▁"
#: the tokens of byte fallback -> the byte each stands for
BYTE_TOKENS = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
_LARGEST_ID = 1 << 24
_REMEDY = (
    "give the tokenizer.json that `shoal data tokenizer-train` wrote, or another BPE one that gives text back as it was"
)
_DROPS = "drops characters, so text would not come back from its tokens"
_PRE_TOKENIZERS = {
    "Whitespace": _DROPS,
    "WhitespaceSplit": _DROPS,
    "BertPreTokenizer": _DROPS,
    "CharDelimiterSplit": _DROPS,
}
# Bytes that no UTF-8 text holds, so that a vocabulary may lack them.
_NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}
# Neighbours of each class that the patterns in use tell apart.
_NEIGHBOURS = ("", "a", "A", "\u0301", "1", ".", "+", "'", " ", "  ", "\n", "東")


@dataclass(frozen=True)
class Rules:
    """How a tokenizer is to be used.

    Attributes:
        byte_level: its vocabulary spells bytes; else characters, with byte fallback.
        spaces: "▁" in its vocabulary stands for a space.
        nfc: it normalizes text to Unicode's NFC first.
        special: control tokens, which text never becomes: content -> id.
        added: the other added tokens, which are cut out of text before all else: content -> id.
        says: what it does that its user should know.
    """

    byte_level: bool
    spaces: bool
    nfc: bool
    special: dict[str, int]
    added: dict[str, int]
    says: list[str]


def rules_of(config: Mapping[str, Any]) -> Rules:
    """The rules of a parsed `tokenizer.json`.

    Raises:
        UserError: it is of a class that is refused; the message says which, without the file's name.
        KeyError, TypeError, ValueError, AttributeError: it is no `tokenizer.json`.
    """
    model = config["model"]
    _check_model(model)
    normalizers = flat(config.get("normalizer"), "normalizers")
    steps = flat(config.get("pre_tokenizer"), "pretokenizers")
    byte_level = _check_steps(steps, bool(model.get("byte_fallback")))
    spaces = _check_normalizers(normalizers, byte_level) or any(step["type"] == "Metaspace" for step in steps)
    nfc = any(step["type"] == "NFC" for step in normalizers)
    _check_alphabet(model["vocab"], byte_level, spaces)
    special, added = _added_tokens(config)
    _check_spelling(config, byte_level, special, added)
    _check_added(config, nfc)
    says = []
    if nfc:
        says.append("the tokenizer normalizes text (NFC): the corpus holds the normalized text")
    if spaces:
        says.append(f"the tokenizer writes a space as {SPACE!r}: a {SPACE!r} in a document becomes a space")
    if config.get("truncation") or config.get("padding"):
        says.append("the tokenizer's truncation and padding are left out: documents are encoded whole")
    return Rules(byte_level, spaces, nfc, special, added, says)


def token_texts(config: Mapping[str, Any]) -> list[bytes]:
    """The bytes of text that each token stands for, by id; empty for control tokens and unused ids.

    Takes any BPE `tokenizer.json`, those that `rules_of` refuses too.
    """
    steps = flat(config.get("pre_tokenizer"), "pretokenizers")
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    spaces = not byte_level and any(
        step["type"] in ("Metaspace", "Replace") for step in [*steps, *flat(config.get("normalizer"), "normalizers")]
    )
    vocab, added = config["model"]["vocab"], config.get("added_tokens") or []
    texts = [b""] * (1 + max([*vocab.values(), *(token["id"] for token in added)], default=-1))
    for name, token in vocab.items():
        texts[token] = spell(name) if byte_level else _spell_fallback(name, spaces)
    for entry in added:
        content = entry["content"].replace(SPACE, " ") if spaces else entry["content"]
        texts[entry["id"]] = b"" if _is_special(entry) else content.encode()
    return texts


def flat(part: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer as the list of its steps; `inner` is the field of a Sequence that holds them."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for child in part[inner] for step in flat(child, inner)]
    return [part]


def stays_whole(text: str, cut: PreTokenizer | None, *, inside: bool) -> bool:
    """Whether the pre-tokenizer `cut` leaves `text` in one piece among some neighbours.

    Args:
        inside: a longer piece that holds it counts as well.
    """
    if cut is None:
        return True
    for before in _NEIGHBOURS:
        for after in _NEIGHBOURS:
            first, last = len(before), len(before) + len(text)
            for _, (begin, end) in cut.pre_tokenize_str(before + text + after):
                if (begin, end) == (first, last) or (inside and begin <= first and last <= end):
                    return True
    return False


def _refuse(problem: str, remedy: str = _REMEDY) -> NoReturn:
    raise UserError(problem, remedy)


def _check_model(model: Mapping[str, Any]) -> None:
    kind = model.get("type") or ("BPE" if "merges" in model else "not named")
    if kind != "BPE":
        _refuse(f"its model is {kind}, not BPE")
    if model.get("dropout"):
        _refuse(f"it drops merges at random (dropout {model['dropout']})", 'set "dropout" to null')
    for field in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            _refuse(f"its {field} {model[field]!r} marks where words are cut, and text would not come back")
    ids = model["vocab"].values()
    _check_ids([*ids])
    if len(set(ids)) < len(ids):
        _refuse("two entries of its vocabulary have one id", "mend the vocabulary")
    for made in _made(model):
        if made not in model["vocab"]:
            _refuse(f"a merge makes {made!r}, which is not in its vocabulary", "mend the merges")


def _made(model: Mapping[str, Any]) -> set[str]:
    """The entries that merges make, be they pairs or, as they were once written, two names with a space between."""
    return {"".join(pair) if isinstance(pair, list) else pair.replace(" ", "", 1) for pair in model["merges"]}


def _check_ids(ids: Sequence[Any]) -> None:
    for token in ids:
        if type(token) is not int or not 0 <= token < _LARGEST_ID:
            _refuse(f"the token id {token!r} is not one of 0 .. {_LARGEST_ID - 1}", "mend the id")


def _check_normalizers(steps: Sequence[Mapping[str, Any]], byte_level: bool) -> bool:
    """Refuse normalizers after which text does not come back; returns whether one writes spaces as "▁"."""
    spaces = False
    for step in steps:
        kind = step["type"]
        marks = kind == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE
        if marks and not byte_level:
            spaces = True
        elif kind == "Prepend":
            _refuse(
                f"its normalizer Prepend puts {step['prepend']!r} before every text, which would not come back as it "
                "was",
                "take Prepend out of its normalizer (a model that is trained from scratch does not need it)",
            )
        elif kind != "NFC":
            _refuse(f"its normalizer {kind} changes text, which would not come back as it was")
    return spaces


def _check_steps(steps: Sequence[Mapping[str, Any]], byte_fallback: bool) -> bool:
    """Refuse pre-tokenizers that lose or add text, or are not known; returns whether the vocabulary spells bytes."""
    kinds = [step["type"] for step in steps]
    for kind, step in zip(kinds, steps, strict=True):
        if kind == "ByteLevel" and step.get("add_prefix_space", True):
            _refuse(
                "its pre-tokenizer puts a space before every text (add_prefix_space), which would not come back as it "
                "was",
                'set "add_prefix_space" to false (a model that is trained from scratch does not need it)',
            )
        elif kind == "Metaspace":
            _check_metaspace(step)
        elif kind == "Split" and step["behavior"] == "Removed":
            _refuse(f"its pre-tokenizer Split (Removed) {_DROPS}")
        elif kind == "Digits":
            pattern = r"\p{N}" if step["individual_digits"] else r"\p{N}+"
            _refuse(
                "its pre-tokenizer Digits is none that the encoder is held to",
                f"write it as the Split that does the same: the regular expression {pattern}, Isolated",
            )
        elif kind not in ("ByteLevel", "Split"):
            _refuse(f"its pre-tokenizer {kind} {_PRE_TOKENIZERS.get(kind, 'is none that the encoder is held to')}")
    if kinds.count("ByteLevel") > 1 or ("ByteLevel" in kinds and "Metaspace" in kinds):
        _refuse(f"its pre-tokenizer spells text twice ({', '.join(kinds)})")
    if "ByteLevel" not in kinds and not byte_fallback:
        _refuse(
            "it has neither a ByteLevel pre-tokenizer nor byte_fallback, so that characters outside its alphabet would "
            "be lost"
        )
    return "ByteLevel" in kinds


def _check_metaspace(step: Mapping[str, Any]) -> None:
    scheme = step.get("prepend_scheme") or ("never" if step.get("add_prefix_space") is False else "always")
    if scheme != "never":
        _refuse(
            f"its pre-tokenizer Metaspace puts a space before text (prepend_scheme {scheme}), which would not come "
            "back as it was",
            'set "prepend_scheme" to "never" (a model that is trained from scratch does not need it)',
        )
    if step["replacement"] != SPACE:
        _refuse(f"its pre-tokenizer Metaspace writes a space as {step['replacement']!r}, not {SPACE!r}")


def _check_alphabet(vocab: Mapping[str, int], byte_level: bool, spaces: bool) -> None:
    """Refuse a vocabulary that leaves out bytes which text may hold."""
    if byte_level:
        missing = [byte for name, byte in byte_of_character().items() if name not in vocab]
    else:
        missing = [byte for byte, name in enumerate(BYTE_TOKENS) if name not in vocab]
        missing = [byte for byte in missing if byte >= 0x80 or chr(byte) not in vocab]
        if spaces:
            missing = [byte for byte in missing if byte != 0x20]
            if SPACE not in vocab:
                missing.append(0x20)
    missing = sorted(set(missing) - _NEVER)
    if missing:
        _refuse(f"its vocabulary has no token for {len(missing)} of the bytes of text, such as 0x{missing[0]:02X}")


def _is_special(entry: Mapping[str, Any]) -> bool:
    """Whether text may never become this added token, whatever its file says of those with a part to play."""
    return bool(entry.get("special")) or is_control(entry["content"])


def _added_tokens(config: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    entries = config.get("added_tokens") or []
    _check_ids([entry["id"] for entry in entries])
    owner: dict[int, str] = {}
    for entry in entries:
        content, token = entry["content"], entry["id"]
        if not content:
            _refuse(f"its added token {token} is empty", "take it out of added_tokens")
        if owner.setdefault(token, content) != content:
            _refuse(f"two of its added tokens, {owner[token]!r} and {content!r}, have the id {token}", "mend the ids")
    special = {entry["content"]: entry["id"] for entry in entries if _is_special(entry)}
    return special, {entry["content"]: entry["id"] for entry in entries if entry["content"] not in special}


def _check_added(config: Mapping[str, Any], nfc: bool) -> None:
    """Refuse added tokens that change the text they stand in."""
    for entry in config.get("added_tokens") or []:
        if _is_special(entry):
            continue
        if entry.get("lstrip") or entry.get("rstrip"):
            _refuse(f"its added token {entry['content']!r} swallows the white space beside it (lstrip, rstrip)")
        if nfc and not unicodedata.is_normalized("NFC", entry["content"]):
            _refuse(f"its added token {entry['content']!r} is not normalized (NFC), as the text is")


def _check_spelling(
    config: Mapping[str, Any], byte_level: bool, special: Mapping[str, int], added: Mapping[str, int]
) -> None:
    """Refuse a vocabulary where plain text spells a control token, or a token stands for two texts."""
    model = config["model"]
    vocab = model["vocab"]
    merged = _made(model)

    def spelled(name: str) -> bool:
        if name not in vocab:
            return False
        if name in merged or (len(name) == 1 and (not byte_level or spell(name) != b"")):
            return True
        if not model.get("ignore_merges"):
            return False
        text = spell(name).decode(errors="replace") if byte_level else name
        return text != "" and stays_whole(text, _pre_tokenizer(config), inside=False)

    for name in special:
        if spelled(name):
            _refuse(
                f"its special token {name!r} is spelled by plain text too, so that a document could forge it",
                "give it a name that text is never cut into, such as <|name|>",
            )
    for name in added:
        if byte_level and spell(name) not in (b"", name.encode()) and spelled(name):
            _refuse(f"its added token {name!r} stands for {spell(name)!r} in its vocabulary", "rename it")
    if not byte_level:
        for name in BYTE_TOKENS:
            if spelled(name):
                _refuse(f"plain text spells {name!r}, which stands for a byte", "take out the merge that makes it")


def _pre_tokenizer(config: Mapping[str, Any]) -> PreTokenizer | None:
    model: dict[str, Any] = {"type": "BPE", "vocab": {}, "merges": []}
    holder: dict[str, Any] = {"model": model, "pre_tokenizer": config.get("pre_tokenizer"), "added_tokens": []}
    found: PreTokenizer | None = Tokenizer.from_str(json.dumps(holder)).pre_tokenizer
    return found


def _spell_fallback(name: str, spaces: bool) -> bytes:
    return BYTE_TOKENS.get(name) or (name.replace(SPACE, " ") if spaces else name).encode()
