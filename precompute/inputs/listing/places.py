"""What lies at a place: a folder of files, files that were named, lists, tables, tars or a data set of the Hub.

What is named is judged by its first bytes, what lies in a folder by its suffix: a look at each of a million files that
nobody may want costs too much. All that is not taken is counted, or is an input with a problem.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from ....pipeline.errors import ConfigError, ImageError
from ....pipeline.failures import FailureReason
from ....pipeline.files.places.local import url_of
from ....pipeline.files.tables import arrow as arrow_files
from ....pipeline.files.tables import text as lists
from ....pipeline.messages import name_some
from ...rollout.kind import Kind
from ...rollout.kinds import KINDS
from ..first_bytes import EMPTY, LIST, OTHER, TABLE, TAR, UNKNOWN, Content, is_special, look_at
from ..rows.fields import Fields
from .absent import absent, is_there
from .containers import TARS, add_containers
from .entries import Container, Entries
from .folders import Walk, expand_braces, has_braces, has_magic, match_files
from .links import broken_link
from .remote_places import find_remote
from .selection import (
    FOLDER,
    HIDDEN,
    LOOP,
    Selection,
    advice,
    counted,
    name_left_out,
    refuse_columns,
    relative,
    suffix_of,
)

_SAVED = frozenset({"dataset_info.json", "state.json", "dataset_dict.json"})
"""What `save_to_disk` writes beside its tables, which are read with them."""
_content_of = cache(Content)
_LOOKED_AT = 3
"""Files of a folder without inputs that are looked at, to say what they are."""


def find(place: Path, kind: Kind, column: str | None, fields: Fields) -> Selection:
    """The inputs of a place, and the number of what was left out.

    Raises:
        ConfigError: as of `list_inputs`; or this user may not look there.
    """
    text = str(place)
    if (url := url_of(text)) is not None:
        return find_remote(url, kind, column, fields)
    if text.startswith(arrow_files.HUB):
        fetched = arrow_files.fetch_hub(text)
        root = str(fetched[0].parent) if fetched else text
        return add_containers(fetched, text, root, kind, column, fields, from_user=False)
    if _is_folder(place):
        if (files := arrow_files.saved_files(place)) is not None:
            return _saved(place, files, kind, column, fields)
        return _folder(place, kind, column, fields)
    if is_there(text):
        check_named(place, kind)
        return _named(text, [text], kind, column, fields)
    if has_braces(text):
        files = expand_braces(text)
        if missing := [file for file in files if not os.path.exists(file)]:  # noqa: PTH110 - whatever its length
            raise ConfigError(
                f"{text} names {len(files)} files, and there is no {missing[0]} (looked from {Path.cwd()})"
            )
        return _named(text, files, kind, column, fields)
    if has_magic(text):
        files, walk = match_files(text)
        if not files:
            raise ConfigError(f"the pattern {text} matches no file here ({Path.cwd()}){_seen_instead(walk)}")
        return _named(text, files, kind, column, fields, walk)
    raise absent(text, kind.takes)


def check_named(place: Path, kind: Kind) -> None:
    """Refuse a single file that is no input, list, table or tar, by a look at its first bytes.

    Whatever else the place is, it passes: `find` looks at that.

    Raises:
        ConfigError: says what it is, and what to do.
    """
    text = str(place)
    if text.startswith(arrow_files.HUB) or _is_folder(place) or not is_there(text):
        return
    if not os.path.exists(text):  # noqa: PTH110
        raise ConfigError(str(broken_link(text, os.readlink(text))))  # noqa: PTH115
    if is_special(text):
        raise ConfigError(f"{text} is a pipe, a device or a socket. Name a file, a folder, a list, tables or tars")
    try:
        content = look_at(text)
    except OSError as error:
        raise ConfigError(f"{text} cannot be read: {error.strerror or error} (looked from {Path.cwd()})") from error
    if content.form == OTHER:
        raise ConfigError(_no_input(text, content, kind))
    if content.form == UNKNOWN and _form_by_suffix(text) not in (LIST, TABLE, TAR):
        raise ConfigError(
            f"{text} is no {kind.takes}, list, table or tar by its first bytes. If it is a {kind.takes}, it is "
            "damaged, or in a format that is not read (docs/inputs.md); if it was downloaded, fetch it again"
        )


def _is_folder(place: Path) -> bool:
    try:
        if not place.is_dir():
            return False
        os.scandir(place).close()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # a pattern may be of any length
            raise ConfigError(f"{place} cannot be read: {error.strerror} (looked from {Path.cwd()})") from error
        return False
    return True


def _named(
    named: str, files: Sequence[str], kind: Kind, column: str | None, fields: Fields, walk: Walk | None = None
) -> Selection:
    """The inputs of files that were named, one by one or by a pattern.

    Args:
        walk: of a pattern, what was counted on the way. What a pattern matches beside inputs is left out; without one
            it is refused.
    """
    root = os.path.commonpath([os.path.dirname(file) for file in files] or ["."]) or "."  # noqa: PTH120
    broken = sorted(walk.broken) if walk is not None else []
    if broken and walk is not None:
        without = {str(Path(walk.root, name)) for name in broken}
        files = [file for file in files if file not in without]
    forms = {file: _form(file, kind, is_only=walk is None and len(files) == 1) for file in files}
    _refuse_others(named, forms.values(), kind)
    inputs = [file for file in files if forms[file].form == kind.takes]
    others = [file for file in files if forms[file].form == OTHER]
    containers = [file for file in files if forms[file].form in (LIST, TABLE, TAR)]
    texts = [file for file in containers if suffix_of(file) == lists.PATHS]
    if inputs or len(texts) < len(containers):  # captions and notes beside them
        others += texts
        containers = [file for file in containers if file not in set(texts)] if texts else containers
    if inputs and containers:
        raise ConfigError(
            f"{named} stands for {len(containers)} lists, tables or tars and {len(files) - len(containers)} other "
            "files. Narrow the pattern to one or the other"
        )
    if others and (walk is None or not (inputs or containers)):
        raise ConfigError(_no_input(others[0], forms[others[0]], kind))
    if containers:
        by_content = {Path(file): forms[file].form for file in containers}
        paths = [Path(file) for file in sorted(containers)]
        selection = add_containers(paths, named, root, kind, column, fields, forms=by_content)
    else:
        refuse_columns(named, column, fields)
        selection = Selection(Entries(named), sound={named})
        selection.entries.open(Container(named, root))
        for name, file in sorted((relative(file, root), file) for file in inputs):
            selection.entries.add_file(name, file)
    selection.leave_out_files(Counter(map(suffix_of, others)), kind)
    if walk is not None:
        selection.entries.open(Container(named, root))
        _add_walk(selection, walk, broken)
    return selection


def _seen_instead(walk: Walk) -> str:
    """What a pattern without files met: folders, loops of links, folders that cannot be read."""
    met = Counter({FOLDER: walk.folders, LOOP: walk.loops})
    named = f", but {name_left_out(+met)}" if +met else ""
    if walk.folders:
        named += ": to search folders, end it in /**/*"
    closed = [f"{name or walk.root} cannot be read: {why}" for name, why in sorted(walk.entered.items()) if why]
    return f"{named}. {name_some(closed, between='; ')}" if closed else named


def _form(file: str, kind: Kind, *, is_only: bool) -> Content:
    """What a file that was named is: by its first bytes, or by its suffix where it is one of many.

    What cannot be looked at is an input of this kind: reading it will say why.
    """
    form = _form_by_suffix(file)
    if form is not None and not is_only:
        return _content_of(form)
    if is_special(file):
        return Content(form or OTHER, "a pipe, a device, a socket or a folder", "Name files")
    try:
        content = look_at(file)
    except OSError:
        return Content(form or kind.takes)
    if content.form == EMPTY:
        return Content(form or kind.takes)
    if content.form == UNKNOWN:
        return Content(form) if form is not None else Content(OTHER, "of unknown content", "Narrow the pattern")
    return content


def _form_by_suffix(file: str) -> str | None:
    suffix = suffix_of(file)
    if suffix in TARS:
        return TAR
    if suffix in arrow_files.SUFFIXES:
        return TABLE
    if suffix in lists.SUFFIXES or lists.form_of_name(file) in lists.SUFFIXES:
        return LIST
    return next((kind.takes for kind in KINDS.values() if suffix in kind.suffixes), None)


def _no_input(file: str, content: Content, kind: Kind) -> str:
    advice = f". {content.advice}" if content.advice else ""
    return f"{file} is {content.what}: no {kind.takes}, list, table or tar{advice}"


def _saved(place: Path, files: list[Path], kind: Kind, column: str | None, fields: Fields) -> Selection:
    """The inputs of a folder that `save_to_disk` wrote; what else lies in it is counted."""
    text = str(place)
    selection = add_containers(files, text, text, kind, column, fields)
    walk = Walk(place)
    read = {relative(str(file), text) for file in files}
    rest = [name for name in walk.files() if name not in read and name.rpartition("/")[2] not in _SAVED]
    selection.leave_out_files(Counter(map(suffix_of, rest)), kind)
    selection.entries.open(Container(text, text))
    _add_walk(selection, walk)
    return selection


def _folder(place: Path, kind: Kind, column: str | None, fields: Fields) -> Selection:
    text = str(place)
    walk = Walk(place)
    names = list(walk.files())
    if walk.entered.get(""):
        raise ConfigError(f"{place} cannot be read: {walk.entered['']}")
    # a link without a suffix may have led to a folder
    broken = sorted(name for name in walk.broken if suffix_of(name) in kind.suffixes or not suffix_of(name))
    if broken:
        without = set(broken)
        names = [name for name in names if name not in without]
    suffixes = Counter(map(suffix_of, names))
    for wanted in (kind.suffixes, TARS, arrow_files.SUFFIXES - {".arrow"}):
        taken = sorted(name for name in names if suffix_of(name) in wanted)
        if not taken:
            continue
        if wanted == kind.suffixes:
            refuse_columns(text, column, fields)
            selection = Selection(Entries(text), sound={text})
            selection.entries.open(Container(text, text))
            for name in taken:
                selection.entries.add_file(name)
        else:
            selection = add_containers([place / name for name in taken], text, text, kind, column, fields)
            selection.entries.open(Container(text, text))
        selection.leave_out_files({suffix: suffixes[suffix] for suffix in suffixes.keys() - wanted}, kind)
        _add_walk(selection, walk, broken)
        return selection
    selection = Selection(Entries(text))
    selection.entries.open(Container(text, text))
    selection.leave_out_files(suffixes, kind)
    _add_walk(selection, walk, broken)
    raise ConfigError(_nothing_in(place, names, selection, kind))


def _add_walk(selection: Selection, walk: Walk, broken: Iterable[str] = ()) -> None:
    """Add what could not be looked at, and count what was passed over on the way.

    Args:
        broken: links that are no input, but should be named; relative to the place.
    """
    for name in broken:
        selection.entries.add_broken(name, broken_link(name, walk.broken[name]))
    for name, why in sorted(walk.entered.items()):
        if why:
            name = name or f"{walk.root}/"
            problem = ImageError(FailureReason.MISSING, f"the folder {name} cannot be read: {why}")
            selection.entries.add_broken(name, problem)
        else:
            selection.sound.add(name)
    selection.sound.discard("")
    selection.leave_out(HIDDEN, walk.hidden)
    selection.leave_out(LOOP, walk.loops)
    selection.leave_out(FOLDER, walk.folders)


def _nothing_in(place: Path, names: Sequence[str], selection: Selection, kind: Kind) -> str:
    """Why a folder holds no input of a kind, in words."""
    others = selection.others
    if others:
        return f"{place} holds no {kind.takes}, but {counted(others)}. {advice(others)}"
    problems = [str(entry.problem) for entry in selection.entries if entry.problem is not None]
    if problems:
        return f"{place} holds no {kind.takes} that can be seen: {name_some(problems, between='; ')}"
    suffixes = ", ".join(sorted(kind.suffixes))
    start = f"{place} holds no {kind.takes}: none of its {len(names)} files ends in {suffixes}. "
    if selection.left_out:
        start += f"It holds {name_left_out(selection.left_out)}. "
    named = [name for name in names if suffix_of(name) in lists.SUFFIXES]
    if named:
        return f"{start}To take the {kind.takes}s that a list names, name the list: {place / named[0]}"
    examples: list[str] = []
    for name in sorted(names)[:_LOOKED_AT]:
        file = str(place / name)
        content = _form(file, kind, is_only=True)
        if content.form == kind.takes:
            pattern = place / "**" / f"*{suffix_of(name)}"
            return f'{start}By its content {name} is one; what a pattern matches is taken by content: "{pattern}"'
        if content.form == LIST:
            return f"{start}If {name} lists {kind.takes}s, one path a line, name it: {file}"
        if content.form == OTHER and content.advice and not is_special(file):
            examples.append(f"{name} is {content.what}. {content.advice}")
    return start + (". ".join(examples) or "Name the folder that holds them; folders inside it are searched too")


def _refuse_others(named: str, contents: Iterable[Content], kind: Kind) -> None:
    """Refuse named files of another kind, rather than skip what the user named."""
    forms = Counter(content.form for content in contents)
    nouns = {other.takes for other in KINDS.values() if other.takes != kind.takes}
    others = {noun: forms[noun] for noun in sorted(nouns) if forms[noun]}
    if others:
        narrower = f", or narrow the pattern to {kind.takes}s" if forms.total() > 1 else ""
        raise ConfigError(
            f"{named} stands for {counted(others)}, and only {kind.takes}s are wanted. {advice(others)}{narrower}"
        )
