"""What an address of a store says: its kind, its place, and its options."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from shoal_core.errors import UserError
from shoal_core.store.base import checked_name

__all__ = ["KNOWN", "Address", "join", "parsed", "split"]

KNOWN = "a path, file://, s3://, gs://, abfss:// or hdfs://"

_OPTIONS: dict[str, tuple[str, ...]] = {
    "s3": ("endpoint_override", "region", "scheme"),
    "gs": ("endpoint_override", "scheme"),
    "abfss": ("endpoint_override", "scheme"),
    "hdfs": ("user",),
}
_SECRETS = ("access_key", "secret_key", "session_token", "account_key", "sas_token", "password")


@dataclass(frozen=True)
class Address:
    """A URL's scheme, what it names first (bucket, container, host), the path under that, and its options.

    Attributes:
        text: as the user wrote it.
    """

    text: str
    scheme: str
    root: str
    path: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def endpoint(self) -> str | None:
        """The URL of the store, if the options name one: `endpoint_override`, with `scheme` before it (https)."""
        host = self.options.get("endpoint_override")
        if host is None or "://" in host:
            return host
        return f"{self.options.get('scheme', 'https')}://{host}"


def parsed(text: str) -> Address:
    """What the URL `text` says. Options stand after `?`, in pyarrow's words; they are decoded, and nothing else is.

    Raises:
        UserError: it names no bucket, holds a secret, or an option that is not known.

    >>> parsed("s3://bucket/a b%20/c?endpoint_override=localhost:9000&scheme=http").endpoint
    'http://localhost:9000'
    """
    scheme, _, rest = text.partition("://")
    named, question, query = rest.partition("?")
    root, _, path = named.partition("/")
    who, at, bare = root.rpartition("@")
    secret = bool(at) and (":" in who or (scheme != "abfss" and (scheme, who) != ("gs", "anonymous")))
    shown = f"{scheme}://{bare if secret else root}/{path}"
    options = dict(parse_qsl(query, keep_blank_values=True))
    if secret or "@" in options.get("endpoint_override", "") or any(option in _SECRETS for option in options):
        raise UserError(
            f"{shown}: credentials do not belong into an address, which is shown and written down",
            "give them as the store's own tools find them: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, "
            "GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_KEY, a role; for hdfs:// ?user=NAME",
        )
    if not root:
        raise UserError(
            f"{shown}: names no bucket", f"write {scheme}://{'host:8020' if scheme == 'hdfs' else 'bucket'}/prefix"
        )
    known = _OPTIONS.get(scheme, ())
    wrong = sorted(set(options) - set(known)) or ([query] if question and not options else [])
    if wrong:
        allowed = f"the options of {scheme}:// are {', '.join(known)}" if known else f"{scheme}:// takes no options"
        raise UserError(f"{shown}: unknown option {wrong[0]!r} after the question mark", allowed)
    if options.get("scheme", "https") not in ("http", "https"):
        raise UserError(f"{shown}: scheme={options['scheme']} is none", "write scheme=http or scheme=https")
    return Address(text, scheme, root, path, options)


def join(address: str | os.PathLike[str], *names: str) -> str:
    """The address of what stands under `address` by `names`. Options stay at the end; the rest is kept as written.

    Raises:
        ValueError: a name is none of an object, or holds a `?`, which would begin the options of a URL.

    >>> join("s3://bucket/runs?region=eu-north-1", "run-1", "checkpoints")
    's3://bucket/runs/run-1/checkpoints?region=eu-north-1'
    >>> join("~/runs", "run-1")
    '~/runs/run-1'
    """
    text = os.fspath(address)
    under = [checked_name(name) for name in names]
    if _is_folder(text):
        return os.path.join(text, *under)
    place, options = _without_options(text)
    if wrong := [name for name in under if "?" in name]:
        raise ValueError(f"{wrong[0]!r} cannot stand in the address of a store: its question mark begins options")
    return "/".join([place.rstrip("/"), *under] if under else [place]) + options


def split(address: str | os.PathLike[str]) -> tuple[str, str]:
    """The address of what something lies in, and its name there, which `join` puts together again. The name is "" where
    an address does not say it.

    >>> split("s3://bucket/runs/run-1/?region=eu-north-1"), split("run-1"), split("/run-1")
    (('s3://bucket/runs?region=eu-north-1', 'run-1'), ('.', 'run-1'), ('/', 'run-1'))
    >>> split("s3://bucket"), split("runs/.."), split("~")
    (('s3://bucket', ''), ('runs/..', ''), ('~', ''))
    """
    text = os.fspath(address)
    place, options = _without_options(text)
    above, slash, name = place.rstrip("/").rpartition("/")
    if name in ("", ".", "..") or above.endswith(("/", ":")) or (not slash and name.startswith("~")):
        return text, ""
    return (above or slash or ".") + options, name


def _without_options(text: str) -> tuple[str, str]:
    """An address up to the question mark of its options, and these with it. A folder's has none."""
    place, question, options = (text, "", "") if _is_folder(text) else text.partition("?")
    return place, question + options


def _is_folder(text: str) -> bool:
    return "://" not in text or text.startswith("file://")
