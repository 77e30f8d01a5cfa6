"""A tokenizer with its own chat template: conversations to token ids, and which of them are answers.

Where the template marks answers (`{% generation %}`), its marks count, once they are seen to lie around what the
assistant says and around nothing that others say. Elsewhere an answer is what the template adds to
the conversation before it, with the words that ask for an answer (`add_generation_prompt`): that only tells where
answers are if what comes first is rendered alike with and without what follows, which is checked for each.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal_core.errors import UserError
from shoal_data.chat.conversations import Conversation, NoConversationError, strings
from shoal_data.chat.samples import IGNORED
from shoal_data.sources.columns import words

__all__ = ["ChatTokenizer", "Encoded"]

Message = dict[str, Any]
_MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens.

    Attributes:
        ids: int32, (n,).
        answer: which tokens are of an answer: one that has a character of it, as in transformers; (n,).
        across: how many tokens lie across the beginning or the end of an answer.
    """

    ids: npt.NDArray[np.int32]
    answer: npt.NDArray[np.bool_]
    across: int = 0


@dataclass(frozen=True)
class _Rendered:
    """A conversation as text; `answers`: where in it they begin and end, in characters."""

    text: str
    answers: list[tuple[int, int]]


class ChatTokenizer:
    """The tokenizer of a Hugging Face folder, and its chat template.

    Args:
        folder: with tokenizer.json and tokenizer_config.json; nothing is downloaded, and no code of it is run but the
            template, which Jinja runs in a sandbox.
        template: a file with another template (Jinja); empty: the tokenizer's own.
        answers: "all" of a conversation's, or the "last" one.
        plain: a prompt and its completion, where they are text, are encoded as they stand and end with the end of text.

    Attributes:
        digest, template_digest: SHA-256 of what the tokenizer does, and of its template.

    Raises:
        UserError: transformers is missing; the folder has no tokenizer that can be used; the template is no Jinja.
    """

    def __init__(self, folder: str | Path, template: str = "", answers: str = "all", plain: bool = False) -> None:
        self._of = _tokenizer(folder)
        if template:
            self._of.chat_template = _text_of(template)
        if isinstance(self._of.chat_template, str) and not plain:
            _check_jinja(self._of.chat_template, f"--template {template}" if template else f"--tokenizer {folder}")
        self.answers, self.plain = answers, plain
        if plain and self._of.eos_token_id is None:
            raise UserError(
                f"--tokenizer {folder}: it names no end of text (eos_token), which ends a completion",
                "name one in its tokenizer_config.json, or leave out --plain",
            )
        special = sorted({token.content for token in self._of.added_tokens_decoder.values() if token.special} - {""})
        self._marks_seen = set[tuple[str, ...]]()
        """Roles of conversations, in their order, whose marks lie where they should."""
        self._forged = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self.digest = _digest([self._of.backend_tokenizer.to_str(), self._of.special_tokens_map])
        self.template_digest = _digest(self._of.chat_template)

    @property
    def size(self) -> int:
        """How many ids there are, added tokens included."""
        return len(self._of)

    def shown(self, ids: Sequence[int], labels: Sequence[int]) -> str:
        """What tokens stand for, control tokens included, with [[ ]] around what is predicted."""
        parts = []
        for predicted, some in itertools.groupby(zip(ids, labels, strict=True), key=lambda one: one[1] != IGNORED):
            text = str(self._of.decode([one for one, _ in some], skip_special_tokens=False))
            parts.append(f"[[{text}]]" if predicted else text)
        return "".join(parts)

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded | NoConversationError]:
        """Each conversation in tokens, or why it cannot be trained on."""
        found = [self._begun(conversation) for conversation in conversations]
        texts = [one.text for one in found if isinstance(one, _Rendered)]
        tokens = self._of(texts, add_special_tokens=False, return_offsets_mapping=True) if texts else {}
        encoded = zip(tokens.get("input_ids", ()), tokens.get("offset_mapping", ()), strict=True)
        done = [_with_answers(next(encoded), one.answers) if isinstance(one, _Rendered) else one for one in found]
        return [
            NoConversationError("no token of an answer that another comes before")
            if isinstance(one, Encoded) and not one.answer[1:].any()
            else one
            for one in done
        ]

    def _begun(self, conversation: Conversation) -> Encoded | _Rendered | NoConversationError:
        try:
            self._check_control_tokens(conversation)
            return self._pair(conversation) if conversation.plain and self.plain else self._render(conversation)
        except NoConversationError as error:
            return error

    def _check_control_tokens(self, conversation: Conversation) -> None:
        for at, message in enumerate(conversation.messages):
            for text in strings(message):
                if forged := self._forged.search(text):
                    raise NoConversationError(f"message {at} spells the control token {forged[0]}")

    def _pair(self, conversation: Conversation) -> Encoded:
        prompt, completion = (message["content"] for message in conversation.messages)
        before = [one for one in self._of(prompt)["input_ids"] if one != self._of.eos_token_id]
        after = [*self._of(completion, add_special_tokens=False)["input_ids"], self._of.eos_token_id]
        answer = np.arange(len(before) + len(after)) >= len(before)
        return Encoded(np.array(before + after, np.int32), answer)

    def _render(self, conversation: Conversation) -> _Rendered:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            tools: Any = conversation.tools
            template = self._of.get_chat_template(tools=tools)
        except ValueError as error:
            raise UserError(
                f"{self._of.name_or_path}: {words(error)}",
                "give --template FILE, a Jinja chat template; or --plain, for `prompt` and `completion` that are text",
            ) from None
        turns = [
            at
            for at, message in enumerate(conversation.messages)
            if message["role"] == "assistant" and at >= conversation.first
        ]
        turns = turns[-1:] if self.answers == "last" else turns

        def render(until: int, given: Sequence[Message] = conversation.messages, **settings: Any) -> Any:
            try:
                return render_jinja_template(
                    conversations=[list(given[:until])],
                    tools=tools,
                    chat_template=template,
                    **{**self._of.special_tokens_map, **settings},
                )
            except Exception as error:  # a template may raise what it likes, and is the user's
                raise NoConversationError(f"the chat template does not take it: {words(error)}") from None

        whole = len(conversation.messages)
        if _MARKS_ANSWERS.search(template):
            if (roles := tuple(message["role"] for message in conversation.messages)) not in self._marks_seen:
                probed = _probed(conversation.messages)
                texts, marked = render(whole, probed, return_assistant_tokens_mask=True)
                _check_marks(self._of.name_or_path, probed, texts[0], marked[0])
                self._marks_seen.add(roles)
            texts, marked = render(whole, return_assistant_tokens_mask=True)
            return _Rendered(texts[0], _chosen(marked[0], conversation, self.answers))
        text = str(render(whole)[0][0])
        spans = []
        for turn in turns:
            before = str(render(turn, add_generation_prompt=True)[0][0])
            after = text if turn == whole - 1 else str(render(turn + 1)[0][0])
            if not (after.startswith(before) and text.startswith(after)):
                raise NoConversationError(
                    f"message {turn}: the chat template renders what comes before the answer otherwise once the rest "
                    "follows, so that it cannot be told which tokens are the answer: give a --template that marks "
                    "answers with {% generation %}, or try --answers last"
                )
            spans.append((len(before), len(after)))
        return _Rendered(text, spans)


def _probed(messages: Sequence[Message]) -> list[Message]:
    """The messages, each with a word of its own at the end of what it says."""
    return [
        {**message, "content": f"{message['content']} {_probe(at)}"} if message.get("content") else message
        for at, message in enumerate(messages)
    ]


def _probe(at: int) -> str:
    return f"(message {at} ends)"


def _check_marks(tokenizer: str, probed: Sequence[Message], text: str, marked: Iterable[tuple[int, int]]) -> None:
    """Hold what a template marks against who says it. text: of messages of `_probed`; marked: places in it.

    Raises:
        UserError: what another says is marked, or nothing that the assistant says.
    """
    inside = [text[first:last] for first, last in marked]
    said = [(at, message["role"]) for at, message in enumerate(probed) if _probe(at) in text]
    covered = [(at, role) for at, role in said if any(_probe(at) in span for span in inside)]
    others = [f"message {at}, of role {role}" for at, role in covered if role != "assistant"]
    if not others and (not inside or covered or all(role != "assistant" for _, role in said)):
        return
    what = f"what is no answer ({others[0]})" if others else "places where no answer is"
    raise UserError(
        f"{tokenizer}: the chat template marks {what} with {{% generation %}}",
        "put the marks around what the assistant says, and nothing else, in a --template; or take them out",
    )


def _chosen(marked: Iterable[tuple[int, int]], conversation: Conversation, answers: str) -> list[tuple[int, int]]:
    """Of the spans that a template marked those that are to be trained on."""
    spans = [(int(first), int(last)) for first, last in marked]
    roles = [message["role"] for message in conversation.messages]
    prompted = roles[: conversation.first].count("assistant")
    if (prompted or answers == "last") and len(spans) != roles.count("assistant"):
        raise NoConversationError(
            f"the chat template marks {len(spans)} answers of {roles.count('assistant')} turns of role assistant, so "
            "that it cannot be told which are meant"
        )
    return spans[-1:] if answers == "last" else spans[prompted:]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _with_answers(tokens: tuple[Sequence[int], Sequence[tuple[int, int]]], spans: Sequence[tuple[int, int]]) -> Encoded:
    """tokens: ids, and where in the text each lies; spans: where answers do."""
    ids, offsets = tokens
    places = np.array(offsets, np.int64).reshape(-1, 2)
    begin, end = places[:, 0], places[:, 1]
    answer = np.zeros(len(ids), bool)
    across = 0
    for first, last in spans:
        answer |= (begin < last) & (end > first)
        across += int((((begin < first) & (end > first)) | ((begin < last) & (end > last))).sum())
    return Encoded(np.array(ids, np.int32), answer, across)


def _tokenizer(folder: str | Path) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UserError(
            f"conversations need transformers, which is not installed ({words(error)})", "pip install 'shoal[hf]'"
        ) from error
    if not (Path(folder) / "tokenizer_config.json").is_file():
        raise UserError(
            f"--tokenizer {folder}: no folder with tokenizer_config.json",
            "name a folder of a Hugging Face model or tokenizer on this machine",
        )
    try:
        found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of whatever kind: it says what is wrong with these files
        raise UserError(f"--tokenizer {folder}: {words(error)}", "mend the folder, or name another") from error
    if not found.is_fast:
        raise UserError(
            f"--tokenizer {folder}: it has no tokenizer.json, which tells where tokens lie in the text",
            "name a folder that has one",
        )
    return found


def _check_jinja(template: str, named: str) -> None:
    """See that a template can be compiled: what is wrong with it is no row's fault."""
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        render_jinja_template([], chat_template=template)  # compiles, and renders nothing
    except TemplateSyntaxError as error:
        raise UserError(
            f"{named}: line {error.lineno} of the chat template is no Jinja ({error.message})",
            "mend it, or give another with --template",
        ) from error


def _text_of(file: str) -> str:
    try:
        return Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--template {file}: {words(error)}", "name a file with a Jinja chat template") from error
