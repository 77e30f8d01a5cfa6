"""The page's colours, in one place, so that a test can measure them: in each theme text and marks stand out from their
ground, and cells, and runs laid over each other, differ also for those who see colours otherwise."""

from __future__ import annotations

__all__ = ["DARK", "LIGHT", "SERIES", "stylesheet"]

SERIES = 6
"""Colours of cells and of runs; more begin anew, and names tell them apart."""
LIGHT = {
    "ground": "#f3f5f7", "paper": "#ffffff", "sunk": "#edf1f4", "line": "#d3dae0", "ink": "#1f2b36", "muted": "#566370",
    "edge": "#75818c", "good": "#1f6f47", "bad": "#b3261e", "warn": "#8a5300", "focus": "#0b57d0",
    "c0": "#387890", "c1": "#c04008", "c2": "#7800b8", "c3": "#900000", "c4": "#005060", "c5": "#a828f8",
}  # fmt: skip
DARK = {
    "ground": "#0e1319", "paper": "#161d25", "sunk": "#1f2832", "line": "#303b47", "ink": "#e4eaf0", "muted": "#a3b0bc",
    "edge": "#7d8b98", "good": "#6fd39b", "bad": "#ff8a80", "warn": "#f2b84b", "focus": "#8ab4f8",
    "c0": "#58c8f8", "c1": "#f86820", "c2": "#c0d808", "c3": "#8878f8", "c4": "#c07088", "c5": "#f098a0",
}  # fmt: skip


def stylesheet() -> str:
    """Both as custom properties: the system's choice, or what `data-theme` says."""
    light, dark = (";".join(f"--{name}:{colour}" for name, colour in theme.items()) for theme in (LIGHT, DARK))
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f':root[data-theme="dark"]{{color-scheme:dark;{dark}}}\n'
        f'@media (prefers-color-scheme:dark){{:root:not([data-theme="light"]){{color-scheme:dark;{dark}}}}}\n'
    )
