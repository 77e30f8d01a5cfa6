"""Configs as flat `a.b.c: value` pairs for people and trackers, with credentials masked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["MASK", "flat_masked", "mask_text"]

MASK = "***"

# A key is a credential by its last words: `hf_token` and `secret_access_key` are, `tokens` and `token_shards` not.
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_CREDENTIAL = {"token", "password", "passwd", "passphrase", "secret", "credential", "credentials", "apikey"}
_KEY_OF = {"api", "access", "private", "secret", "account", "signing", "encryption"}

_USER_INFO = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_QUERY = re.compile(
    r"(?i)([?&][^=&\s]*(?:token|password|passwd|secret|sig|signature|credential|api_?key|access_?key)[^=&\s]*=)[^&\s]+"
)


def mask_text(text: str) -> str:
    """`text` without the user names and passwords in its URIs."""
    return _QUERY.sub(rf"\1{MASK}", _USER_INFO.sub(MASK, text))


def _is_credential(key: str) -> bool:
    words = [word.lower() for word in _WORD.findall(key)]
    if not words:
        return False
    return words[-1] in _CREDENTIAL or (words[-1] == "key" and len(words) > 1 and words[-2] in _KEY_OF)


def flat_masked(config: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`. Values of keys that look like credentials are masked, and so are user names
    and passwords inside URIs."""
    return dict(_flat(config, ""))


def _flat(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = f"{prefix}{key}"
        if value is not None and _is_credential(str(key)):
            yield name, MASK
        elif isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, _masked(value)


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, Mapping):
        return {key: MASK if _is_credential(str(key)) else _masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    return value
