"""Choose the frames of a clip that is to have a rate of its own.

The frame of a moment is the one nearest to it in time; of two equally near, the earlier. The last frame is there until
half of its duration is over. Containers round times, Matroska to a millisecond, so a difference of so little is none:
a video gives the same frames from every container.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

Frame = TypeVar("Frame")

ROUNDING_S = Fraction(1, 1000)
"""Difference of two distances that is rounding."""


def moments(count: int, rate: float, start_s: float = 0.0) -> list[Fraction]:
    """The times of a clip's frames in seconds: start + k / rate."""
    return [Fraction(start_s) + Fraction(k) / Fraction(rate) for k in range(count)]


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a video that a clip is taken from, in seconds from its first frame on."""

    start_s: float = 0.0
    end_s: float | None = None
    """A clip that would go on after it is too short; None is the end of the video."""


WHOLE = Window()


@dataclass(frozen=True, slots=True)
class Timed(Generic[Frame]):
    """A frame and when it is shown."""

    time_s: Fraction
    """From the first frame on."""
    duration_s: Fraction
    frame: Frame


def nearest(frames: Iterable[Timed[Frame]], wanted: Sequence[Fraction]) -> Iterator[Frame]:
    """For each moment the frame nearest to it. No frame is asked for beyond the one that decides the last moment.

    Args:
        frames: in order of their times, which all differ.
        wanted: moments in ascending order.
    Returns:
        As many frames as there are moments that the frames reach; one may stand for several moments.
    """
    before: Timed[Frame] | None = None
    at = 0
    for moment in frames:
        # a later one cannot be nearer than one that is this near
        while at < len(wanted) and wanted[at] <= moment.time_s + ROUNDING_S:
            if before is None or wanted[at] - before.time_s - abs(moment.time_s - wanted[at]) > ROUNDING_S:
                yield moment.frame
            else:
                yield before.frame
            at += 1
        if at == len(wanted):
            return
        before = moment
    if before is not None:
        end = before.time_s + before.duration_s / 2 + ROUNDING_S
        while at < len(wanted) and wanted[at] <= end:
            yield before.frame
            at += 1


def from_moment(frames: Iterable[Timed[Frame]], start_s: Fraction) -> Iterator[Frame]:
    """The frames as they are stored, from the one nearest to a moment on."""
    frames = iter(frames)
    before: Timed[Frame] | None = None
    for moment in frames:
        if moment.time_s + ROUNDING_S >= start_s:
            if before is not None and start_s - before.time_s - abs(moment.time_s - start_s) <= ROUNDING_S:
                yield before.frame
            yield moment.frame
            break
        before = moment
    else:
        if before is not None and start_s <= before.time_s + before.duration_s / 2 + ROUNDING_S:
            yield before.frame
        return
    for frame in frames:
        yield frame.frame
