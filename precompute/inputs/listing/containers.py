"""The inputs that lists, tables and tars hold or name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ....pipeline.errors import ConfigError, ImageError
from ....pipeline.failures import FailureReason
from ....pipeline.files.file_facts import FileFacts, facts_of
from ....pipeline.files.remote import Root, local_path
from ....pipeline.files.tables import arrow as arrow_files
from ...rollout.kind import Kind
from ..first_bytes import LIST, OTHER, TABLE, TAR, look_at
from ..rows import manifests, tables
from ..rows.fields import Fields
from ..tars import members as tars
from ..tars.samples import EACH, TarSamples
from .entries import Container, Entries
from .links import refuse_special
from .selection import HIDDEN, TEXT_ALONE, Selection, advice, counted, refuse_columns, relative, suffix_of

TARS = frozenset({".tar"})


def add_containers(
    files: list[Path],
    place: str,
    root: str,
    kind: Kind,
    column: str | None,
    fields: Fields,
    *,
    from_user: bool = True,
    forms: Mapping[Path, str] | None = None,
) -> Selection:
    """The inputs that lists, tables and tars hold or name.

    Args:
        place, root: what the user named, and the folder that the files' names are relative to.
        from_user: whether the files are the user's; then no link leads a row out of the folder of its list.
        forms: what each file is (first_bytes.py); None judges by suffix.
    """
    sources = [_Source(relative(str(file), root), str(file), str(file.parent), _form(file, forms)) for file in files]
    return _add(sources, place, ", ".join(map(str, files[:3])) or root, kind, column, fields, from_user=from_user)


def add_remote_containers(
    files: Mapping[str, FileFacts], root: Root, place: str, kind: Kind, column: str | None, fields: Fields
) -> Selection:
    """As `add_containers`, of files of a bucket or of a data set on the Hub: name below its root -> facts."""
    sources = [
        _Source(
            f"{root.url}/{name}",
            f"{root.at}/{name}",
            f"{root.at}/{name}".rpartition("/")[0],
            _form(Path(name), None),
            facts,
        )
        for name, facts in sorted(files.items())
    ]
    return _add(sources, place, place, kind, column, fields, from_user=True)


@dataclass(frozen=True, slots=True)
class _Source:
    """A list, table or tar."""

    name: str
    path: str
    """Of this machine, or a URL."""
    folder: str
    form: str
    facts: FileFacts | None = None
    """Of a file that lies elsewhere."""

    def container(self, local: Path) -> Container:
        """What holds its inputs; `local` is the file that is read."""
        return Container(self.name, self.path, facts=self.facts or facts_of(str(local)))


def _add(
    sources: list[_Source],
    place: str,
    place_name: str,
    kind: Kind,
    column: str | None,
    fields: Fields,
    *,
    from_user: bool,
) -> Selection:
    selection = Selection(Entries(place))
    entries = selection.entries
    samples = TarSamples(column)
    column = None if column == EACH else column
    for source in sources:
        if source.form == TAR:
            refuse_columns(source.path, None, fields)
    for source in sources:
        name = source.name
        entries.open(Container(name, source.path))
        file = Path(source.path)
        try:
            file = Path(local_path(source.path))
            refuse_special(file, name)
            _refuse_other(file, name, source.form)
            if source.form == TAR:
                _add_tar(selection, source, file, kind, samples)
            elif source.form == TABLE:
                _add_table(entries, source, file, kind, column, fields, from_user=from_user)
            else:
                _add_list(selection, source, file, kind, column, fields)
            selection.sound.add(name)
        except ImageError as error:  # of the whole file, or of the rest of it
            entries.add_broken(name, ImageError(error.reason, str(error).replace(str(file), name)))
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(file), name)) from error
    if note := samples.check(place, kind.takes):
        selection.notes.append(note)
    if not len(entries):
        others = f", but {counted(selection.others)}. {advice(selection.others)}" if selection.others else ""
        raise ConfigError(f"{place_name} holds no {kind.takes}{others}")
    entries.number_repeated()
    return selection


def _refuse_other(file: Path, name: str, form: str) -> None:
    """Refuse a file whose content is not what its suffix says: a pointer of git LFS, a compressed tar."""
    with suppress(OSError):  # reading will say why
        content = look_at(str(file))
        if content.form == OTHER:
            reason = {TAR: FailureReason.TAR, TABLE: FailureReason.TABLE}.get(form, FailureReason.ROW)
            raise ImageError(reason, f"{name} is {content.what}. {content.advice}".rstrip(". "))


def _form(file: Path, forms: Mapping[Path, str] | None) -> str:
    if forms is not None:
        return forms[file]
    suffix = file.suffix.lower()
    return TAR if suffix in TARS else TABLE if suffix in arrow_files.SUFFIXES else LIST


def _add_tar(selection: Selection, tar: _Source, file: Path, kind: Kind, samples: TarSamples) -> None:
    entries, name = selection.entries, tar.name
    entries.open(tar.container(file))
    passed_over: Counter[str] = Counter()  # by suffix
    samples.open()
    try:
        for member in tars.members(str(file)):
            if member.is_folder:
                continue
            if member.name.rpartition("/")[2].startswith("."):
                selection.leave_out(HIDDEN)
            elif samples.wanted:
                if (left := samples.offer(member)) is not None:
                    passed_over[suffix_of(left.name)] += 1
            elif suffix_of(member.name) not in kind.suffixes:
                passed_over[suffix_of(member.name)] += 1
            else:
                samples.note_input(member.name)
                _add_member(entries, name, member)
    finally:
        for sample in samples.taken():
            if isinstance(sample, tars.Member):
                _add_member(entries, name, sample)
            else:
                source, why = f"{name}:{sample[0]}", sample[1]
                entries.add_broken(source, ImageError(FailureReason.MISSING, f"{source}: {why}"))
        selection.leave_out_files(passed_over, kind)


def _add_member(entries: Entries, name: str, member: tars.Member) -> None:
    source = f"{name}:{member.name}"
    if member.regular:
        entries.add_member(source, member.offset, member.size)
    else:
        entries.add_broken(source, ImageError(FailureReason.NOT_A_FILE, f"{source} is not a regular member"))


def _add_list(
    selection: Selection, listed: _Source, file: Path, kind: Kind, column: str | None, fields: Fields
) -> None:
    entries = selection.entries
    entries.open(Container(listed.name, listed.path, listed.folder))
    start, without = len(entries), 0
    for row in manifests.read_manifest(file, kind.takes, column=column, fields=fields):
        if row is manifests.AGAIN:
            entries.cut(start)
            without = 0
        elif row is manifests.WITHOUT:
            without += 1
        elif row.problem is not None:
            entries.add_broken_row(row.problem, row.number, row.element)
        else:
            entries.add_row(row.path, row.number, row.prompt, row.element, row.window)
    selection.leave_out(TEXT_ALONE, without)


def _add_table(
    entries: Entries, listed: _Source, file: Path, kind: Kind, column: str | None, fields: Fields, *, from_user: bool
) -> None:
    container = listed.container(file)  # before it is read
    table = tables.read_table(file, kind.takes, column=column, fields=fields)
    entries.open(replace(container, folder=listed.folder, column=table.column or "", follows_links=not from_user))
    start = len(entries)
    try:
        for row, has_bytes in table.rows:
            if row.problem is not None:
                entries.add_broken_row(row.problem, row.number, row.element)
            elif has_bytes:
                entries.add_cell(row.path, row.number, row.prompt, row.element, row.window)
            else:
                entries.add_row(row.path, row.number, row.prompt, row.element, row.window)
    except ImageError:  # rows of a damaged table are not trusted
        entries.cut(start)
        raise
