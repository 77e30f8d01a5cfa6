"""What a conversation is: one row of the input, looked at before any template or tokenizer sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ROLES", "Conversation", "NoConversationError", "conversation_of", "strings"]

ROLES = ("system", "developer", "user", "assistant", "tool")
_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}


class NoConversationError(Exception):
    """Why a row is no conversation to train on."""


@dataclass(frozen=True)
class Conversation:
    """Turns, of which answers are trained on.

    Attributes:
        messages: as a chat template is given them, without keys that are null.
        tools: JSON schemas of the tools that the assistant may call; None: there are none.
        first: messages before this one are the prompt, whoever speaks in them.
        plain: the row is a prompt and its completion as text: `messages` are a user's turn and an assistant's.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    first: int = 0
    plain: bool = False


def conversation_of(row: Mapping[str, Any]) -> Conversation:
    """The conversation in `row`: of `messages`, or of `prompt` and `completion` (both text, or both messages).

    Raises:
        NoConversationError: it has none, or one without an answer.
    """
    row = {name: value for name, value in row.items() if value is not None}
    pair = [name for name in ("prompt", "completion") if name in row]
    if "messages" in row and pair:
        raise NoConversationError(f"both `messages` and `{pair[0]}`: it is not clear which is meant")
    tools = _tools(row.get("tools"))
    if "messages" in row:
        return _with_an_answer(Conversation(_messages(row["messages"], "messages"), tools))
    if len(pair) < 2:
        there = f"`{pair[0]}` alone" if pair else f"{', '.join(sorted(row)) or 'nothing'}"
        raise NoConversationError(f"neither `messages` nor `prompt` and `completion` (it has {there})")
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return _with_an_answer(Conversation(_messages(messages, "prompt and completion"), tools, 1, plain=True))
    if isinstance(prompt, str) or isinstance(completion, str):
        kinds = f"{_kind(prompt)} and {_kind(completion)}"
        raise NoConversationError(f"`prompt` and `completion` are {kinds}, not both text or both messages")
    before = _messages(prompt, "prompt")
    return _with_an_answer(Conversation([*before, *_messages(completion, "completion")], tools, len(before)))


def _tools(value: Any) -> list[dict[str, Any]] | None:
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise NoConversationError(f"`tools` is {_kind(value)}, not a list of JSON schemas")
    return [_without_nulls(tool) for tool in value]


def _messages(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise NoConversationError(f"`{name}` is {_kind(value)}, not a list of messages")
    if not value:
        raise NoConversationError(f"`{name}` is empty")
    return [_message(message, f"{name}[{at}]") for at, message in enumerate(value)]


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise NoConversationError(f"{where} is {_kind(value)}, not an object with `role` and `content`")
    message: dict[str, Any] = _without_nulls(value)
    role = message.get("role")
    if not isinstance(role, str):
        raise NoConversationError(f"{where}: `role` is {_kind(role)}, not text")
    if role not in ROLES:
        raise NoConversationError(f"{where}: unknown role {role[:40]!r} (known: {', '.join(ROLES)})")
    content = message.get("content")
    calls = role == "assistant" and bool(message.get("tool_calls"))
    if not isinstance(content, str) and not (content is None and calls):
        raise NoConversationError(f"{where}: `content` is {_kind(content)}, not text")
    if role == "assistant" and not calls and not (content or "").strip():
        raise NoConversationError(f"{where}: the answer is empty")
    for text in strings(message):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise NoConversationError(f"{where}: half a surrogate pair in its text") from None
    return message


def _with_an_answer(found: Conversation) -> Conversation:
    if not any(message["role"] == "assistant" for message in found.messages[found.first :]):
        raise NoConversationError("no turn of role assistant: there is no answer to train on")
    return found


def strings(value: Any) -> list[str]:
    """All texts within a value, keys left out.

    >>> strings({"content": "a", "tool_calls": [{"name": "b"}]})
    ['a', 'b']
    """
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for one in inner for text in strings(one)]


def _without_nulls(value: Any) -> Any:
    """Without keys that are null: Arrow's structs have every key that any row has, and templates ask for some."""
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
