"""What a verification says of a store: what was looked at, and what was found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...messages import command, format_bytes

Level = Literal["names", "read", "deep"]
LEVELS: tuple[Level, ...] = ("names", "read", "deep")
MOST_ALIKE = 20
"""Findings of one sort that are told one by one; of a store without payloads there are tens of thousands."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a store a person should know."""

    damage: bool
    """False: harmless, only worth knowing."""
    what: str
    """One word: manifest, record, payload, missing, zarr, index, log, dropped, retiring, unmade, orphan, leftover,
    twice, locked."""
    message: str
    paths: tuple[Path | str, ...] = ()
    """The files (in a bucket, their URLs) it is about; what a repair moves away."""
    shard: int | None = None
    count: int = 1
    """How many shards it stands for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What was looked at, and what was found."""

    store: Path | str
    level: Level
    shards: int
    """Looked into, of all."""
    of_shards: int
    samples: int
    """Visible ones, of the whole store."""
    bytes_read: int
    findings: tuple[Finding, ...]

    @property
    def damage(self) -> tuple[Finding, ...]:
        """The findings that are damage."""
        return tuple(finding for finding in self.findings if finding.damage)

    @property
    def damaged(self) -> int:
        """How many files and shards are damaged or missing."""
        return sum(finding.count for finding in self.damage)

    def to_json(self) -> dict[str, Any]:
        """Plain values; of a finding that stands for many shards, the first paths."""
        findings = [
            {**asdict(replace(f, paths=())), "paths": [str(path) for path in f.paths[:MOST_ALIKE]]}
            for f in self.findings
        ]
        fields = {name: getattr(self, name) for name in ("level", "shards", "of_shards", "samples", "bytes_read")}
        return {"store": str(self.store), **fields, "damaged": self.damaged, "findings": findings}

    def lines(self) -> list[str]:
        """As a person reads it."""
        total = f" of {self.of_shards}" if self.shards < self.of_shards else ""
        messages = [f"{'DAMAGE' if finding.damage else 'note'}: {finding.message}" for finding in self.findings]
        read = f", {format_bytes(self.bytes_read)} read" if self.bytes_read else ""
        deep = ["--deep"] if self.level == "deep" else []
        repair = command("cache", "repair", self.store, *deep, "--apply")
        heal = f"`{repair}` moves what is damaged aside, and keeps a list of what is missing; nothing is deleted"
        if any(finding.what == "manifest" for finding in self.damage):
            heal = "No repair can make this file again"
        unmade = " in what is here" if any(finding.what == "unmade" for finding in self.findings) else ""
        return [
            *messages,
            f"{self.store}: {self.samples} samples, {self.shards}{total} shards verified ({self.level}){read}: "
            + (f"{self.damaged} damaged. {heal}" if self.damage else f"no damage{unmade}"),
        ]
