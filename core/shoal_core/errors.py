"""Errors that are the user's to mend: one clear message, a remedy, exit code 2. Imports nothing, so that every package
may raise them."""

from __future__ import annotations

__all__ = ["StoreError", "UserError"]


class UserError(Exception):
    """What is wrong (naming the file, field, row or setting) and what to do about it."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}\n  remedy: {remedy}" if remedy else problem)
        self.problem, self.remedy = problem, remedy


class StoreError(UserError):
    """The place where bytes lie did not give them: network, throttling, permission, a file that vanished, a bad disk.

    It says nothing about the bytes, so whoever reads them passes it on and never takes them for broken.
    """
