"""Errors that are the user's to mend: one clear message, a remedy, exit code 2."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(Exception):
    """What is wrong (naming the file, field or setting) and what to do about it."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}\n  remedy: {remedy}" if remedy else problem)
        self.problem, self.remedy = problem, remedy
