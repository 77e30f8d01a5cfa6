"""The page as one document, which refers to nothing outside itself, and the policy that lets nothing else run in it."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from shoal.dashboard.palette import stylesheet

__all__ = ["SCRIPTS", "document", "policy"]

SCRIPTS = ("dom.js", "curves.js", "crew.js", "timeline.js", "head.js", "app.js")
"""In the order in which they stand in the page."""


@cache
def document() -> str:
    """The page. What it shows of a record it asks for and sets as text, never as markup."""
    return _part("page.html").replace("/*STYLE*/", _style()).replace("/*SCRIPT*/", _script())


@cache
def policy() -> str:
    """Its Content-Security-Policy: the two parts above by their hashes, and calls to this server."""
    style, script = (
        base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (_style(), _script())
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _style() -> str:
    return stylesheet() + _part("style.css")


def _script() -> str:
    return '"use strict";\n' + "\n".join(_part(name) for name in SCRIPTS)


def _part(name: str) -> str:
    return (files("shoal.dashboard") / "page" / name).read_text(encoding="utf-8")
