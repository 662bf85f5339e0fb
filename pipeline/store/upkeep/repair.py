"""Move damaged files of a store to lost+found/, so that precompute makes again what was in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...files.places.folder import Folder
from ...files.places.local import place_of
from ...files.places.lock_object import require_held
from ...files.places.place import Place
from ...progress import Progress
from ..commit import link_on_the_way
from ..folder import load_store
from ..keys.dropped import add_dropped, salvage
from ..keys.snapshot import remove_snapshot
from ..promises import promised_and_gone, report_gone
from .maintenance import alone, name_in, set_aside
from .names import is_there
from .retire import finish_retirements
from .verify import Finding, Level, Verification, verify


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair did, or would do."""

    verification: Verification
    moved: tuple[Path | str, ...]
    """What was moved to lost+found/, by path or URL; without `apply`, what would be."""
    unhealed: tuple[Finding, ...]
    """Damage that moving files away cannot heal."""
    report: Path | str | None = None
    """The list in lost+found/ of what was promised and is gone."""


def repair(
    path: Path | Place,
    *,
    apply: bool,
    level: Level = "read",
    progress: Progress | None = None,
    break_lock: bool = False,
) -> Repair:
    """Move damaged shards to lost+found/, record first, so that they are missing and precompute makes them again.

    Args:
        apply: False only says what would be moved.
        level: how deeply to look for damage.
        break_lock: as for `alone`.
    Raises:
        StoreNotFoundError, ConfigError: as `verify`.
        StoreLockedError: another repair or gc is at work.
        StoreError: the store cannot be written.
    """
    place = place_of(path)
    if not apply:
        verification = verify(place, level=level, progress=progress)
        return Repair(verification, *_moves(place, verification))
    with alone(place, break_lock=break_lock):
        finish_retirements(load_store(place))
        verification = verify(place, level=level, progress=progress)
        moves, unhealed = _moves(place, verification)
        store = load_store(place)
        report = report_gone(store, promised_and_gone(store))  # first: publishing forgets what was promised
        require_held(place)
        with place.writing():
            for finding in verification.damage:
                if finding.what == "dropped":
                    names = (name_in(place, file) for file in finding.paths)
                    add_dropped(place, [key for name in names for key in salvage(place, name)])
            if any(finding.damage or finding.what == "index" for finding in verification.findings):
                remove_snapshot(place)  # first: it must not speak for a record that is gone
            # but for the snapshot, if it was one
            moves = tuple(file for file in moves if is_there(place, name_in(place, file)))
            for file in moves:
                set_aside(place, name_in(place, file))
        load_store(place).publish()
    return Repair(verification, moves, unhealed, report)


def _moves(place: Place, verification: Verification) -> tuple[tuple[Path | str, ...], tuple[Finding, ...]]:
    unhealed = tuple(f for f in verification.damage if f.what == "manifest")
    files = dict.fromkeys(file for f in verification.damage if f not in unhealed for file in f.paths)
    if isinstance(place, Folder):  # a link itself, never where it leads
        files = dict.fromkeys(link_on_the_way(Path(file), place.path) or file for file in files)
    return tuple(file for file in files if is_there(place, name_in(place, file))), unhealed
