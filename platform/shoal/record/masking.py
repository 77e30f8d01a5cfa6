"""Credentials masked wherever settings or texts are shown or written down: by a setting's name, inside URIs, in prose.

What might be a credential is masked: a URI shown with too little of it costs less than a password shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["MASK", "flat_masked", "has_secret", "mask_text", "masked"]

MASK = "***"

# A name is a credential by its words: `hf_token`, `secretAccessKey` and `AUTH_HEADER` are, `tokens`, `eos_token` and
# `sort_key` are not.
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_ANYWHERE = re.compile(
    r"(?i)passw(or)?d|passphrase|secret(?!ar)|credential|api[_-]?key|authorization|connection_?string"
)
_LAST = {"token", "pwd", "pass", "auth", "bearer", "dsn", "pin", "cookie", "webhook", "sas", "sig", "signature"}
_KEY_OF = {"access", "private", "account", "signing", "encryption", "ssh", "shared", "client", "master"}
_TOKENS_OF = {"access", "api", "auth", "aws", "bearer", "git", "github", "hf", "refresh", "session", "wandb"}
_NOT_THE_TOKEN = {"bos", "end", "eos", "mask", "max", "min", "next", "pad", "per", "special", "stop", "unk"}
_BESIDES = {"value", "header", "id", "text"}
"""Words after a credential's name that leave it one: `token_value`, `access_key_id`."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}$")
_PLAIN_HOST = re.compile(r"(\[[^\]\s]*\]|[^\s/?#@:\[\"']*)(:\d{1,5})?(?=[\s/?#\"',;.)<]|$)")
_PATHS = {"http", "https", "s3", "gs", "file"}
"""Schemes where an `@` after the first slash belongs to a path. Databases' own readers let a password hold slashes."""

_ASSIGNED = re.compile(
    r"""(?x) (?P<before> (?:%3[Bb]|%26)? ) (?P<name>[A-Za-z][\w.-]{0,100})
    (?P<sign> ["']\s*:\s* | :\s+ | \s?=\s? | %3[Dd] )
    (?P<value> "[^"]*" | '[^']*' | (?:(?:Bearer|Basic)\s)? (?:(?!%3[Bb]|%26)[^\s&;,"'}\]])+ )"""
)
_OPTION = re.compile(r"(?<![\w-])(?P<before>--)(?P<name>[A-Za-z][\w-]{0,100})(?P<sign>\s+)[^\s-]\S*")
_HEADER = re.compile(r"(?i)\b((?:proxy-)?authorization|(?:set-)?cookie)(\s*[:=]\s*)[^\r\n\"']+")
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[\w+/=.~-]{4,}")
_USER_INFO = re.compile(r"(?<![\w/:.@+-])[\w.+-]{1,100}:[^\s/@:]+@(?=[\w\[])(?!sha\d+:)")
_WEBHOOK = re.compile(r"(?<=/)(services|webhooks?)/[^\s?#\"']+")
_BY_FORM = re.compile(
    r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|xox[abprs]-[\w-]{10,}"
    r"|eyJ[\w-]{8,}\.[\w-]+\.[\w-]+)"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,20}PRIVATE KEY-----|$)", re.S
)


def mask_text(text: str) -> str:
    """`text` without user names and passwords in URIs, values of what is named like a credential (`a=b`, `"a": "b"`,
    `--a b`), headers, webhooks, and tokens that show by their form. Idempotent."""
    text = _PRIVATE_KEY.sub(MASK, text)
    text = _without_user_info(text)
    text = _WEBHOOK.sub(rf"\1/{MASK}", text)
    text = _HEADER.sub(rf"\1\2{MASK}", text)
    text = _OPTION.sub(_assigned, _assignments(text))
    text = _BEARER.sub(rf"\1 {MASK}", text)
    text = _USER_INFO.sub(f"{MASK}@", text)
    return _BY_FORM.sub(MASK, text)


def has_secret(text: str) -> bool:
    """Whether something in `text` would be masked."""
    return mask_text(text) != text


def masked(value: Any) -> Any:
    """Settings of any depth in the same shape: values of keys named like credentials are `***`, all texts masked."""
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, Mapping):
        return {
            mask_text(key) if isinstance(key, str) else key: MASK if _hides(str(key), item) else masked(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return value


def flat_masked(config: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`, masked."""
    return dict(_flat(masked(config), ""))


def _flat(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_credential(name: str) -> bool:
    if _ANYWHERE.search(name):
        return True
    words = [word.lower() for word in _WORD.findall(name)]
    while len(words) > 1 and words[-1] in _BESIDES:
        words.pop()
    if not words:
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last == "token":
        return before not in _NOT_THE_TOKEN
    return last in _LAST or (last == "key" and before in _KEY_OF) or (last == "tokens" and before in _TOKENS_OF)


def _hides(name: str, value: Any) -> bool:
    """Whether a setting's value must not be shown. A bare `key` is a credential unless it holds a plain word."""
    if value is None or isinstance(value, bool):
        return False
    bare = name.lower() == "key" and isinstance(value, str) and not re.fullmatch(r"[a-z][a-z_.]{0,30}", value)
    return bare or _is_credential(name)


def _assignments(text: str) -> str:
    """`text` with the values of `a=b` and the like masked. What `RuntimeError: ` stands before is looked at too."""
    parts, done, at = [], 0, 0
    while found := _ASSIGNED.search(text, at):
        shown = _assigned(found)
        if shown == found[0] and ":" in found["sign"]:
            at = found.start("value")
            continue
        parts += [text[done : found.start()], shown]
        done = at = found.end()
    return "".join([*parts, text[done:]])


def _assigned(found: re.Match[str]) -> str:
    if not _is_credential(found["name"]):
        return found[0]
    if found["sign"].startswith(":") and not _ANYWHERE.search(found["name"]):
        before = found.string[: found.start()].rstrip(" ")
        if before and before[-1] not in "\n-\"'{[(,;":
            return found[0]  # a sentence: `wants its token: ...`
    return f"{found['before']}{found['name']}{found['sign']}{MASK}"


def _without_user_info(text: str) -> str:
    head, *rests = text.split("://")
    parts, before = [head], head
    for rest in rests:
        scheme = _SCHEME.search(before[-31:])
        parts.append(_authority(scheme[0].lower(), rest) if scheme else rest)
        before = rest
    return "://".join(parts)


def _authority(scheme: str, rest: str) -> str:
    """What follows a URI's `://`, all up to the last `@` of its user name and password masked."""
    word = re.match(r"[^\s\"'<>]*", rest)
    assert word is not None  # it may be empty
    if scheme == "databricks":
        return MASK + rest[word.end() :]
    plain = _PLAIN_HOST.match(rest) is not None
    if rest.startswith("/") or (plain and (scheme in _PATHS or "@" not in word[0])):
        return rest
    authority = word[0].partition("/")[0]
    if scheme not in _PATHS or "@" not in authority:
        authority = word[0]
    end = authority.rfind("@")
    if end < 0 and ":" in word[0]:  # a password with a space in it
        end = rest.rfind("@")
    return MASK + rest[end:] if end >= 0 else rest
