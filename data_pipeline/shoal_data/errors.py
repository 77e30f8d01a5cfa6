"""Errors about input that is the user's to mend. Imports nothing, so that every package may raise them."""

from __future__ import annotations

__all__ = ["InputError", "StoreError"]


class InputError(Exception):
    """What is wrong (naming the file, row or field) and what to do about it."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}\n  remedy: {remedy}" if remedy else problem)
        self.problem, self.remedy = problem, remedy


class StoreError(InputError):
    """The place where bytes lie did not give them: network, throttling, permission, a file that vanished, a bad disk.

    It says nothing about the bytes, so whoever reads them passes it on and never takes them for broken.
    """
