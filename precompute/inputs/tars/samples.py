"""Which members of a tar are inputs where several are of one sample, as in WebDataset.

sub/000.jpg, sub/000.mask.png, sub/000.json    one sample: key sub/000, extensions jpg, mask.png, json

The key goes up to the first dot of the name, the extension is the rest, in small letters. Where none was chosen, every
member of the kind is an input; where most samples have several, which one is meant must be said: masks and depth
maps are pictures too, and would be rolled out at full cost. In a tar of a folder a few names that differ only in their
ends (a.jpg, a.png) are inputs each, and are counted; so are names with numbers or blanks behind a dot (scene.0001.png).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from ....pipeline.errors import ConfigError
from ....pipeline.messages import name_some
from .members import Member

EACH = "*"
"""As the column: every member of the kind is an input of its own. Of a list or table it is as None."""
_FIELD = re.compile(r"[a-z_][\w-]*(?:\.[\w-]+)*")
"""An extension that a writer of samples gives; names with dots have other ends."""
_MOST_KEYS = 2**17
"""Samples of one tar that are compared; those of one key stand near one another."""
_MOST_EXTENSIONS = 1000


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member, by WebDataset's rule."""
    dot = name.find(".", name.rfind("/") + 1)
    return (name, "") if dot < 0 else (name[:dot], name[dot + 1 :].lower())


class TarSamples:
    """The samples in the tars of one place."""

    def __init__(self, column: str | None) -> None:
        """
        Args:
            column: the extension of the inputs, `jpg`; of several, `jpg;png`, each sample's first. None or `*` is each.
        """
        names = [] if column is None or column.strip() == EACH else column.split(";")
        self.wanted = tuple(name.strip().lstrip(".").lower() for name in names if name.strip(". "))
        """Extensions, the one to prefer first; empty where every member of the kind is an input."""
        self._asks = column is None
        self._column = column
        self._extensions: Counter[str] = Counter()
        self._first_fields: dict[str, str] = {}
        """Key -> extension of the first image in it; empty where it has several."""
        self._samples = self._several = self._chosen = 0
        self._by_key: dict[str, tuple[int, Member] | list[str]] = {}
        """Of the tar that is open, key -> its preferred member so far, or the extensions of a sample without one."""

    def open(self) -> None:
        """Begin a tar: the samples before are done."""
        self._first_fields.clear()
        self._by_key.clear()

    def note_input(self, name: str) -> None:
        """Note a member that is an input by its suffix."""
        if not self._asks:
            return
        key, extension = split_name(name)
        self._count(extension)
        first = self._first_fields.get(key) if _FIELD.fullmatch(extension) else None
        if first is None:
            self._samples += 1
            if _FIELD.fullmatch(extension):
                if len(self._first_fields) >= _MOST_KEYS:
                    self._first_fields.clear()
                self._first_fields[key] = extension
        elif first not in ("", extension):
            self._several += 1
            self._first_fields[key] = ""

    def offer(self, member: Member) -> Member | None:
        """Take a member if its extension is wanted and none that is preferred was offered of its sample.

        Returns:
            The member that is not taken: this one, or an earlier one instead of which it is.
        """
        key, extension = split_name(member.name)
        self._count(extension)
        held = self._by_key.get(key)
        if extension not in self.wanted:
            if held is None:
                self._by_key[key] = [extension]
            elif isinstance(held, list) and len(held) < _MOST_EXTENSIONS:
                held.append(extension)
            return member
        rank = self.wanted.index(extension)
        if isinstance(held, tuple) and held[0] < rank:
            return member
        self._by_key[key] = (rank, member)
        if isinstance(held, tuple):
            return held[1]
        self._chosen += 1
        return None

    def taken(self) -> Iterator[Member | tuple[str, str]]:
        """Of each sample of the tar that is open its member; where it has none the name it would have, and why."""
        for key, held in self._by_key.items():
            if isinstance(held, tuple):
                yield held[1]
            else:
                why = f"the sample has no member .{' or .'.join(self.wanted)}; it has {name_some(held)}"
                yield f"{key}.{self.wanted[0]}", why

    def _count(self, extension: str) -> None:
        if extension in self._extensions or len(self._extensions) < _MOST_EXTENSIONS:
            self._extensions[extension] += 1

    def check(self, place: str, takes: str) -> str | None:
        """Whether the choice is one.

        Returns:
            A note where some names have several inputs; None where there is nothing to say.
        Raises:
            ConfigError: no member has the extension; or most samples have several inputs, and none was chosen.
        """
        counts = name_some([f"{name} {count:,}" for name, count in self._extensions.most_common()], most=12)
        if self.wanted and not self._chosen and self._extensions:
            raise ConfigError(
                f"{place} holds no member .{' or .'.join(self.wanted)}. The extensions of its members are {counts}: "
                f"say with --column which one is the {takes}"
            )
        if not self._several:
            return None
        if self._several >= 2 and 2 * self._several >= self._samples:
            raise ConfigError(
                f"{place} holds samples of several {takes}s: {self._several:,} of {self._samples:,} have more than one "
                f"({counts}), and some may be masks or depth maps. Say which is the input: --column "
                f"{self._extensions.most_common(1)[0][0]}, or --column '{EACH}' for each as an input of its own"
            )
        return (
            f"{place}: names with several {takes}s: {self._several:,} of {self._samples:,} ({counts}); each is an "
            "input. --column chooses one of a name"
        )
