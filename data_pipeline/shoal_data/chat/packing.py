"""Which conversations share a sample. Pure, and the same for the same lengths."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
import numpy.typing as npt

__all__ = ["pack"]


def pack(lengths: npt.NDArray[np.int64], room: int) -> list[list[int]]:
    """Put conversations of `lengths` tokens into as few samples of at most `room` tokens as best-fit-decreasing takes.

    The longest come first, each into the sample that has the least room for it; of equals the earlier ones. So none
    is cut, and samples are at most 11/9 of the fewest possible (Johnson et al. 1974), mostly nearly all full.

    Returns:
        For each sample the numbers of its conversations.

    >>> pack(np.array([3, 5, 2, 4]), 7)
    [[1, 2], [3, 0]]
    """
    assert len(lengths) == 0 or int(lengths.max()) <= room
    samples: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # by tokens that are left: samples, the one to fill next at the end
    rooms: list[int] = []  # the keys of `with_room`, in order
    for number in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[number])
        at = bisect_left(rooms, length)
        if at == len(rooms):
            sample, left = len(samples), room
            samples.append([])
        else:
            left = rooms[at]
            sample = with_room[left].pop()
            if not with_room[left]:
                del with_room[left], rooms[at]
        samples[sample].append(number)
        if left := left - length:
            if left not in with_room:
                with_room[left] = []
                insort(rooms, left)
            with_room[left].append(sample)
    return samples
