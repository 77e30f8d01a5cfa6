"""How people outside are told of a run: an HTTP address is posted to, or a command started.

Addresses and tokens come from the environment alone (`notify.url_env`, `.token_env`). They are in no error of this
module, nor is what a server answered or a command printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from shoal.printable import printable
from shoal.sections import Notify
from shoal_core.errors import UserError

__all__ = ["Command", "Hook", "HookFailed", "Webhook", "check", "credentials", "hooks_of", "variables"]


class HookFailed(Exception):
    """Why nobody was told, in words fit for a record."""


class Hook(Protocol):
    """A way to tell somebody."""

    @property
    def name(self) -> str:
        """What the record calls it."""

    def tell(self, said: Mapping[str, Any]) -> None:
        """Tell, within the job's `notify.timeout_s`. said: as docs/watching.md has it; its `text` is for people.

        Raises:
            HookFailed: nobody was told.
        """


def check(notify: Notify | None) -> None:
    """See that the environment has what the job's hooks need.

    Raises:
        UserError: it lacks a variable, or an address is none.
    """
    for name in variables(notify):
        if not os.environ.get(name):
            raise UserError(f"notify: the environment has no {name}", f"export {name} where `shoal train` runs")
    if notify is not None and notify.url_env is not None:
        _check_address(notify.url_env, os.environ[notify.url_env])
    if notify is not None and notify.token_env is not None and not _sendable(os.environ[notify.token_env]):
        raise UserError(
            f"notify.token_env: what {notify.token_env} holds is no token: it has blanks, line ends or characters "
            "that no header takes",
            f"export {notify.token_env} as the token alone",
        )


def variables(notify: Notify | None) -> list[str]:
    """Names of the variables of the environment that the job's hooks need."""
    if notify is None:
        return []
    return [name for name in (notify.url_env, notify.token_env, *notify.command_env) if name is not None]


def credentials(notify: Notify | None) -> dict[str, str]:
    """What the job's hooks need of this process's environment: for the process that tells."""
    return {name: os.environ[name] for name in variables(notify) if name in os.environ}


def hooks_of(notify: Notify | None) -> list[Hook]:
    """The hooks of a job, with what they need from this process's environment.

    Raises:
        UserError: as `check`.
    """
    check(notify)
    found: list[Hook] = []
    if notify is not None and notify.url_env is not None:
        token = os.environ[notify.token_env] if notify.token_env else None
        found.append(Webhook(os.environ[notify.url_env], token, notify.timeout_s))
    if notify is not None and notify.command is not None:
        found.append(Command(tuple(notify.command), notify.timeout_s))
    return found


def _check_address(name: str, address: str) -> None:
    try:
        parts = urlsplit(address)
        fit = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and _sendable(address)
    except ValueError:
        fit = False
    if not fit:
        raise UserError(
            f"notify.url_env: what {name} holds is no address of HTTP",
            f"let {name} be http://HOST/... or https://HOST/...",
        )


def _sendable(text: str) -> bool:
    """Whether a request takes it as it is."""
    return text.isascii() and text.isprintable() and " " not in text


class _Stay(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else: a token is for the one address."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


@dataclass(frozen=True)
class Webhook:
    """Posts `{"text": ...}`, as Slack and those that are like it take it. `token`: sent as a bearer's."""

    address: str = field(repr=False)
    token: str | None = field(repr=False)
    timeout: float
    name: str = "webhook"

    def tell(self, said: Mapping[str, Any]) -> None:
        """Post; see `Hook`."""
        text = str(said["text"]).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")  # Slack's own rule
        headers = {"Content-Type": "application/json"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            request = urllib.request.Request(self.address, json.dumps({"text": text}).encode(), headers)
            with urllib.request.build_opener(_Stay).open(request, timeout=self.timeout) as answer:
                answer.read(1)
        except urllib.error.HTTPError as error:
            raise HookFailed(f"it answered {error.code}") from None
        except OSError as error:
            raise HookFailed(_why(error, self.timeout)) from None
        except Exception as error:  # of http.client, whose words may hold the address
            raise HookFailed(type(error).__name__) from None


@dataclass(frozen=True)
class Command:
    """Starts a program with what is told as JSON on its standard input. What it prints goes nowhere."""

    words: Sequence[str]
    timeout: float
    name: str = "command"

    def tell(self, said: Mapping[str, Any]) -> None:
        """Run it; see `Hook`. It and what it began are ended after `timeout` seconds."""
        quiet = subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                self.words, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True
            )
        except OSError as error:
            raise HookFailed(f"{printable(self.words[0])} cannot be started ({error.strerror})") from None
        try:
            process.communicate(json.dumps(said).encode() + b"\n", self.timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise HookFailed(f"it took longer than {self.timeout:g} s, and was ended") from None
        if process.returncode:
            raise HookFailed(f"it ended with code {process.returncode}")


def _why(error: OSError, timeout: float) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"it did not answer within {timeout:g} s"
    return (cause.strerror if isinstance(cause, OSError) else None) or type(cause).__name__
