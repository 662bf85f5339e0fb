"""Find the latents of questions in a store, and say which have none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from ...pipeline.errors import QuestionError
from ...pipeline.files.hashing import digest_of_file
from ...pipeline.latents.keys import key_of_digest
from ...pipeline.messages import name_some
from ...pipeline.store.folder import LatentStore
from .images import How, SourceNames, find_file, image_folders, parts_of
from .readers import folder_of

_FOUND_BY: dict[How, str] = {
    "spelling": "another spelling of their names",
    "end": "the ends of their names",
    "id": "their ids or numbers",
}
SourceField = Literal["image", "future"]
"""Which of a question's files the latents were made from."""


class Pictured(Protocol):
    """What is needed of a `Question` here."""

    @property
    def id(self) -> str: ...
    @property
    def image(self) -> str: ...
    @property
    def future(self) -> str | None: ...
    @property
    def prompt(self) -> str | None: ...
    @property
    def anchor(self) -> float | None: ...
    @property
    def image_sha256(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Uncovered:
    """One question without latents, and why."""

    question: Pictured
    reason: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which questions have latents in a store, and which do not."""

    keys: dict[str, str]
    """Question id -> key of its image's latents, or of its future's."""
    missing: tuple[Uncovered, ...]
    questions_file: Path
    store_path: str
    field: SourceField = "image"
    notes: tuple[str, ...] = ()
    """Images that were found by another name than their own: how many of each kind, and one of them."""

    def require_complete(self) -> None:
        """Refuse to go on with questions that have no latents.

        Raises:
            QuestionError: some have none; names a few of them, counts all, says what to do.
        """
        if not self.missing:
            return
        images = {getattr(missing.question, self.field) for missing in self.missing}
        named = name_some([f"{item.question.id} ({item.reason})" for item in self.missing], between="; ")
        raise QuestionError(
            f"{len(self.missing)} of {len(self.keys) + len(self.missing)} questions in {self.questions_file} have no "
            f"latents in {self.store_path} ({len(images)} {self.field}s): {named}. "
            f"Precompute these {self.field}s into this store with the same recipe, or take their questions out of the "
            "file. If the images lie in another folder, name it: --images FOLDER"
        )


def resolve_keys(
    questions: Iterable[Pictured],
    questions_file: Path,
    store: LatentStore,
    *,
    field: SourceField = "image",
    images: Path | None = None,
) -> Coverage:
    """Find the latents of each question's image, or of its future.

    An image that the file itself holds, or that exists in `images` or beside the file, is found by the hash of its
    bytes; one that does not, by the source name that precompute recorded in the store. So training does not need the
    images. Names are tried in other spellings, and at last by their ends (images.py).

    Args:
        images: folder that the image names are relative to, as LLaVA's `--image_folder`.
    """
    search = _Search(store, image_folders(folder_of(questions_file), images), has_folder=images is not None)
    searched: dict[_Wanted, _Match] = {}
    shared: dict[_Wanted, _Wanted] = {}  # one for all questions about an image
    wanted_by_id: list[tuple[Pictured, _Wanted | None]] = []
    for question in questions:
        source = question.image if field == "image" else question.future
        if source is None:
            wanted_by_id.append((question, None))
            continue
        prompt = question.prompt if search.per_sample else None
        digest = question.image_sha256 if field == "image" else None
        wanted = _Wanted(source, digest, prompt, question.anchor)
        wanted = shared.setdefault(wanted, wanted)
        if wanted not in searched:
            searched[wanted] = search.match(wanted)
        wanted_by_id.append((question, wanted))
    searched = _without_ends_claimed_twice(searched)
    keys: dict[str, str] = {}
    missing: list[Uncovered] = []
    for question, wanted in wanted_by_id:
        match = _Match(reason="it names no future") if wanted is None else searched[wanted]
        if match.key is None:
            missing.append(Uncovered(question, match.reason))
        else:
            keys[question.id] = match.key
    return Coverage(keys, tuple(missing), questions_file, str(store.place), field, _notes(searched, search))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An image to find, with all that decides its key."""

    name: str
    digest: str | None
    prompt: str | None
    anchor: float | None
    """The second of a video that is meant; None is its start, or the only one there is."""

    @property
    def notes(self) -> str:
        """Prompt and moment, for messages."""
        prompt = "" if self.prompt is None else f" with the prompt {self.prompt!r}"
        return prompt if self.anchor is None else f"{prompt} at {self.anchor:g} s"


@dataclass(frozen=True, slots=True)
class _Match:
    key: str | None = None
    reason: str = ""
    """Why there is no key."""
    source: str = ""
    """The file, or the recorded name, that it was found by."""
    how: How = ""
    is_file: bool = False


class _Search:
    def __init__(self, store: LatentStore, folders: tuple[Path, ...], *, has_folder: bool) -> None:
        self._store, self._folders = store, folders
        self._names = SourceNames(store.sources())
        self._sources, self._prompts, self._starts = store.sources(), store.prompts(), store.starts()
        self._nowhere = f"neither a file {f'in {folders[0]} or ' if has_folder else ''}beside the questions"
        self.per_sample = store.recipe.prompts == "sample"
        """Whether a key is of image and prompt together."""

    def match(self, wanted: _Wanted) -> _Match:
        """The latents of an image: by content, where it is at hand, else by name."""
        name = wanted.name
        by_content = wanted.prompt is not None or not self.per_sample
        try:
            if wanted.digest is not None and by_content:
                return self._of_content(wanted, bytes.fromhex(wanted.digest))
            file = find_file(name, self._folders, by_end=False)
            if file is not None and by_content:
                return self._of_content(wanted, _digest(file.path), str(file.path), file.how)
            if (match := self._of_names(wanted, self._names.named(name))) is not None:
                return match
            file = file or find_file(name, self._folders)
            if file is not None and by_content:
                return self._of_content(wanted, _digest(file.path), str(file.path), file.how)
            if (match := self._of_names(wanted, self._names.ending(name), how="end")) is not None:
                return match
            if (match := self._of_names(wanted, self._names.of_id(name), how="id")) is not None:
                return match
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            return _Match(reason=f"{name} cannot be read: {error}")
        return _Match(reason=f"{name} is {self._nowhere} nor a source named in the store{wanted.notes}")

    def _of_content(self, wanted: _Wanted, digest: bytes, file: str | None = None, how: How = "") -> _Match:
        name, prompt = wanted.name, wanted.prompt
        key = key_of_digest(digest, prompt, wanted.anchor)
        if key in self._store:
            return _Match(key, source=file or name, how=how, is_file=file is not None)
        named = [other for source in self._names.named(name) for other in self._sources[source]]
        if wanted.anchor is None:
            moments = {
                other
                for other in named
                if other in self._starts and key_of_digest(digest, prompt, self._starts[other]) == other
            }
            if len(moments) == 1 and (only := moments.pop()) in self._store:
                return _Match(only, source=file or name, how=how, is_file=file is not None)
            if moments:
                return _Match(reason=_several_moments(name, len(moments)))
        changed = "; the store has another image by this name" if named and file is not None and prompt is None else ""
        return _Match(reason=f"no latent for the content of {name}{wanted.notes}, key {key}{changed}")

    def _of_names(self, wanted: _Wanted, recorded: tuple[str, ...], *, how: How = "") -> _Match | None:
        """The only latents that were made from an input of one of these names; None where none were."""
        name, prompt = wanted.name, wanted.prompt
        matches = {
            key: other
            for other in recorded
            for key in self._sources[other]
            if prompt in (None, self._prompts.get(key)) and self._is_at(key, wanted.anchor)
        }
        if not matches:
            return None
        if self.per_sample and len(matches) > 1 and prompt is None:
            return _Match(
                reason=f"{name} was rolled out with {len(matches)} prompts; name one in the question's `prompt`"
            )
        if len({self._starts.get(key, 0.0) for key in matches}) > 1:
            return _Match(reason=_several_moments(name, len(matches)))
        if len(matches) > 1:
            what = {"end": "has the end of the names of", "id": "is the id or the number of"}.get(how, "names")
            return _Match(
                reason=f"{name} {what} {len(matches)} different images in the store; put the one meant beside the file"
            )
        [(key, other)] = matches.items()
        if key not in self._store:
            return _Match(reason=f"{name} was source of key {key}, which has no latent")
        return _Match(key, source=other, how=how or ("" if other == name else "spelling"))

    def _is_at(self, key: str, anchor: float | None) -> bool:
        """Whether latents begin at this moment of their video, to the millisecond."""
        return anchor is None or round(1000 * self._starts.get(key, 0.0)) == round(1000 * anchor)

    def other_name(self, wanted: _Wanted, match: _Match) -> str | None:
        """The name that precompute recorded for an image found by its content, if it is another one."""
        if not match.is_file or match.key is None or not (recorded := self._names.of_key(match.key)):
            return None
        name_parts = parts_of(wanted.name)[-1:]
        return None if any(parts_of(other)[-1:] == name_parts for other in recorded) else recorded[0]


def _several_moments(name: str, count: int) -> str:
    return f"{name} has latents at {count} moments of it; name one in the question's `anchor`"


def _without_ends_claimed_twice(searched: dict[_Wanted, _Match]) -> dict[_Wanted, _Match]:
    """Refuse what only the end of a name found, where another name found the same: `a/x.png` and `b/x.png` are two."""
    names_by_found: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    by_part = ("end", "id")
    if not any(match.how in by_part for match in searched.values()):
        return searched
    for wanted, match in searched.items():
        if match.key is not None:
            names_by_found[match.source].add(parts_of(wanted.name))
    refused: dict[_Wanted, _Match] = {}
    for wanted, match in searched.items():
        names = names_by_found[match.source] if match.how in by_part else set[tuple[str, ...]]()
        if len(names) > 1:
            others = sorted("/".join(name) for name in names - {parts_of(wanted.name)})
            refused[wanted] = _Match(
                reason=f"{wanted.name} was found as {match.source}, and so was {others[0]}: which of them is it?"
            )
    return {**searched, **refused}


def _notes(searched: dict[_Wanted, _Match], search: _Search) -> tuple[str, ...]:
    examples: defaultdict[str, list[str]] = defaultdict(list)
    for wanted, match in searched.items():
        if match.key is not None and match.how:
            examples[f"images found by {_FOUND_BY[match.how]}"].append(f"{wanted.name} as {match.source}")
        if (other := search.other_name(wanted, match)) is not None:
            kind = "images that the store has under another name, found by their content"
            examples[kind].append(f"{PurePosixPath(wanted.name).name}, there {other}")
    return tuple(f"{kind}: {len(items):,}, such as {items[0]}" for kind, items in examples.items())


def _digest(path: Path) -> bytes:
    """SHA-256 of a file's bytes; cached while size, time and inode stay the same."""
    stat = path.stat()
    return _read_digest(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@cache
def _read_digest(path: Path, *_state: int) -> bytes:
    return digest_of_file(path)
