"""One screen of `shoal top`: lines that fit into a width and a height. Pure functions of a `View`."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from itertools import pairwise

from rich.text import Text

from shoal.printable import printable
from shoal.record.sentences import count, gpu_words
from shoal.top.grid import MARKS, grid, troubles
from shoal.top.view import Stand, View
from shoal_core.units import duration

__all__ = ["bar", "frame", "sparkline"]

BLOCKS, PLAIN = "▁▂▃▄▅▆▇█", "_.-:=+*#"
EVENTS = 4
"""Lines that events have at least, if the screen has as many as a terminal is made for."""
COLOURS = {"done": "green", "running": "green", "recovering": "yellow", "failed": "red", "stopped": "yellow"}


def frame(view: View, width: int, height: int, *, plain: bool = False, keys: str = "") -> list[Text]:
    """The lines: at most `height`, each at most `width` columns wide. plain: of ASCII alone; keys: what is said at the
    bottom."""
    head = [first(view), *progress(view, width, plain), Text(figures(view)), *losses(view, width, plain)]
    head += [Text(line, style="red") for line in warnings(view)]
    foot = [Text(keys, style="dim")] if keys else []
    counted, trouble = counts(view), troubles(view.seats)
    around = len(head) + len(foot) + 1 + bool(view.seats or view.spares) + len(trouble)
    events = min(EVENTS, len(view.events))
    seats = grid(view.seats, width, max(1, height - around - 1 - events))
    map_ = [Text(counted + (f"; a mark: {seats.unit}" if seats.unit else ""), style="bold")] if counted else []
    map_ += [Text(line) for line in seats.lines] + [Text(line, style="yellow") for line in trouble]
    room = height - len(head) - len(foot) - len(map_) - 2
    lines = [*head, Text(), *map_, Text(), *story(view.events, width, room)]
    lines = [*lines[: height - len(foot)], *foot]
    for line in lines:
        line.truncate(width, overflow="ellipsis" if not plain else "crop")
    return lines


def first(view: View) -> Text:
    """The run, how it is doing, and how far it is."""
    of = f" of {view.steps:,}" if view.steps else ""
    done = f" ({view.step / view.steps:.1%})" if view.steps else ""
    name = "silent" if view.silent is not None else view.status
    colour = "red" if view.silent is not None else COLOURS.get(view.status, "cyan")
    rest = f"  step {view.step:,}{of}{done}"
    if view.generation is not None:
        rest += f"  generation {view.generation}"
    return Text.assemble((view.run, "bold"), "  ", (name, colour), rest)


def progress(view: View, width: int, plain: bool) -> list[Text]:
    """A bar, and what is left."""
    if not view.steps:
        return []
    if view.over:
        left = "over"
    elif view.left is None:
        left = "time left not known yet"
    else:
        left = f"{duration(view.left)} left at {view.step_seconds or 0.0:.3g} s a step"
    room = max(0, min(60, width - len(left) - 2))
    return [Text(f"{bar(view.step / view.steps, room, plain)}  {left}".lstrip())]


def bar(part: float, width: int, plain: bool = False) -> str:
    """A bar of which `part` is full.

    >>> bar(0.5, 12, plain=True)
    '[#####-----]'
    """
    inner = max(0, width - 2)
    full = round(inner * min(1.0, max(0.0, part)))
    done, rest = ("#", "-") if plain else ("█", "░")
    return f"[{done * full}{rest * (inner - full)}]" if inner else ""


def figures(view: View) -> str:
    """The last figures, in a line."""
    told = [] if view.loss is None else [f"loss {view.loss:.4f}"]
    if view.tokens_per_second is not None:
        told.append(f"{view.tokens_per_second:,.0f} tokens/s")
    told += gpu_words(view.gpu)
    if view.behind is not None:
        told.append(f"store {view.behind:.1f} s behind, {view.behind_most or 0.0:.1f} s at most")
    if view.asked:
        told.append(f"{count(view.asked, 'slot')} asked of the autoscaler")
    return "   ".join(told)


def losses(view: View, width: int, plain: bool) -> list[Text]:
    """The course of the loss over the last steps, and between what it moved."""
    if len(view.losses) < 2:
        return []
    told = f"  {min(view.losses):.4f} to {max(view.losses):.4f} in {count(len(view.losses), 'step')}"
    line = sparkline(view.losses, max(1, width - len("loss  ") - len(told)), plain)
    return [Text.assemble("loss  ", (line, "cyan"), told)]


def sparkline(values: Sequence[float], width: int, plain: bool = False) -> str:
    """Means of neighbours as bars of eight heights, from the least to the most of them.

    >>> sparkline([8, 7, 6, 5, 4, 3, 2, 1], 4)
    '█▆▃▁'
    """
    blocks = PLAIN if plain else BLOCKS
    count = min(width, len(values))
    edges = [round(at * len(values) / count) for at in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    least, most = min(means), max(means)
    scale = (len(blocks) - 1) / (most - least) if most > least else 0.0
    return "".join(blocks[round((mean - least) * scale)] for mean in means)


def warnings(view: View) -> list[str]:
    """What makes what is shown old."""
    if view.silent is None:
        return []
    return [f"The controller has written nothing for {duration(view.silent)}: what stands here is old."]


def counts(view: View) -> str:
    """How many workers are how, with the mark of each."""
    if view.over and view.seats:
        return f"cells x stages x shards, at the end: {MARKS[Stand.ENDED]} {len(view.seats):,} workers"
    told = ", ".join(f"{MARKS[Stand(name)]} {number:,} {name}" for name, number in view.counts.items())
    return f"cells x stages x shards: {told}" if told else ""


def story(events: Sequence[tuple[float, str]], width: int, room: int) -> list[Text]:
    """The last events, each with its time of day, as many as `room` lines hold whole; the last one in any case."""
    found: list[Text] = []
    for when, text in reversed(events):
        clock = time.strftime("%H:%M:%S", time.localtime(when))
        lines = textwrap.wrap(f"{clock}  {printable(text)}", max(width, 20), subsequent_indent=" " * 10)
        if found and len(found) + len(lines) > room:
            break
        found = [*map(Text, lines), *found]
    return found[: max(0, room)]
