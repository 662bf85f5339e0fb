"""The earlier turns of a conversation, which all its later questions share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, overload

from pydantic import Field, PlainSerializer, WrapValidator

from ...pipeline.files.limits import MAX_TURNS

Turn = tuple[str, str]
"""A question and its answer."""
_Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
_Given = Annotated[tuple[tuple[_Text, _Text], ...], Field(strict=False, max_length=MAX_TURNS)]


class Turns(Sequence[Turn]):
    """The first `count` of some turns; equal to a tuple of them, which for each question would hold them all again."""

    __slots__ = ("_all", "_count")

    def __init__(self, turns: tuple[Turn, ...] = (), count: int | None = None) -> None:
        self._all = turns
        self._count = len(turns) if count is None else count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> Turn: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Turn, ...]: ...
    def __getitem__(self, at: int | slice) -> Turn | tuple[Turn, ...]:
        if isinstance(at, slice):
            return tuple(self)[at]
        return self._all[range(self._count)[at]]

    def __iter__(self) -> Iterator[Turn]:
        return islice(self._all, self._count)

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Turns | tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


def _share(value: Any, check: Callable[[Any], tuple[Turn, ...]]) -> Turns:
    """What a tuple of pairs of texts takes, as `Turns`; and `Turns` without a look inside."""
    return value if isinstance(value, Turns) else Turns(check(value))


if TYPE_CHECKING:
    EarlierTurns = Sequence[Turn]
else:
    EarlierTurns = Annotated[_Given, WrapValidator(_share), PlainSerializer(tuple)]
    """A field of a pydantic model."""
