"""From a key of a store back to the input it was made from, checked by content."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ...pipeline.errors import ConfigError, ImageError
from ...pipeline.failures import FailureReason
from ...pipeline.files.images.decode import read_input_file
from ...pipeline.latents.keys import key_of_bytes, key_of_sample
from ...pipeline.store.folder import LatentStore
from ..media.video_times import Window
from ..rollout.kind import Loaded
from ..rollout.kinds import KINDS, at_moments
from .listing.entries import Entries
from .listing.inputs import list_inputs
from .listing.samples import Samples
from .locations import File, Location
from .rows.spellings import spellings
from .sandbox import shared_decoder
from .tars.samples import EACH


class InputLookup:
    """The inputs of a store that can still be found."""

    def __init__(
        self,
        store: LatentStore,
        place: Path | None,
        *,
        named_by_user: bool = True,
        column: str | None = None,
        image_root: Path | None = None,
    ) -> None:
        """
        Args:
            place: where the inputs are, as precompute takes it: a folder, a pattern, a list, tars. None is the
                embedded scenes in the store's cache folder, if there are any. For a list whose paths are relative to
                another folder that folder does, too.
            named_by_user: whether the user named the place; then links in a folder are followed, as precompute does.
                Elsewhere none may lead out: a store's names and a folder beside it may be a stranger's.
            column, image_root: of a list or table, as precompute takes them.
        Raises:
            ConfigError: there is nothing at this place.
        """
        self._recipe, self._spec, self._prompts = store.recipe, store.spec, store.prompts()
        self._starts = store.starts()
        kind = KINDS[store.recipe.kind]
        self._kind = at_moments(kind) if self._starts else kind
        self._column, self._image_root = column, image_root
        self._sources: dict[str, list[str]] = {}
        for source, keys in sorted(store.sources().items()):
            for key in keys:
                self._sources.setdefault(key, []).append(source)
        self._is_own = named_by_user and place is not None
        if place is None and store.place.is_local and store.recipe.traits.is_image_rollout:
            scenes = store.path.parent / "scenes" / "images"
            place = scenes if scenes.is_dir() else None
        self.place = place
        self._listed: Samples | None = None
        """What lies there, where a name is no path to the input."""
        if place is not None and not place.is_dir():
            self._listed = self._list(place)

    def names(self, key: str) -> tuple[str, ...]:
        """The names of the inputs with this content, sorted; empty where no run recorded any."""
        return tuple(self._sources.get(key, ()))

    def has(self, key: str) -> bool:
        """Whether an input of that name exists; `load` checks its content."""
        return self.place is not None and bool(self._places(key))

    def load(self, key: str) -> Loaded:
        """The input with this key, ready for the world model.

        Raises:
            ImageError: it is not there any more (`missing`), is another by now (`changed`), or cannot be decoded.
        """
        if self.place is None:
            raise ImageError(
                FailureReason.MISSING,
                "the store does not state where its inputs are; name the folder with --images FOLDER",
            )
        problem = ImageError(FailureReason.MISSING, f"no run recorded which input {key} is")
        for source, location in self._places(key):
            try:
                content = location.read(self._kind.max_bytes)
            except ImageError as error:
                problem = error
                continue
            start_s = self._starts.get(key)
            if key_of_sample(content, self._prompts.get(key), start_s) == key:
                window = None if start_s is None else Window(start_s)
                return shared_decoder().load(content, self._recipe, self._spec, source, window)
            problem = ImageError(
                FailureReason.CHANGED, f"{source} is another {self._kind.takes} now than when this store was made"
            )
        raise problem

    def _places(self, key: str) -> list[tuple[str, Location]]:
        names = self.names(key)
        assert self.place is not None
        root = self.place.resolve()
        if self._listed is None:
            places: list[tuple[str, Location]] = []
            for source in names:
                for written in (source, *(other.path for other in spellings(source))):
                    path = self.place / written
                    with suppress(OSError, RuntimeError, ValueError):  # a loop of links, or no path at all
                        # a store may be a stranger's, and its names lead anywhere
                        is_below = self._is_own and not Path(written).is_absolute() and ".." not in Path(written).parts
                        if (is_below or path.resolve().is_relative_to(root)) and path.exists():
                            places.append((source, File(str(path))))
                            break
            if places or not names:
                return places
            self._listed = self._list(self.place)  # a folder of tars or tables, perhaps
        samples = [(source, self._listed.find(source)) for source in names]
        locations = [(source, sample.location) for source, sample in samples if sample is not None]
        if self._is_own or not self.place.is_dir():
            return locations
        return [
            (source, location) for source, location in locations if Path(location.path).resolve().is_relative_to(root)
        ]

    def _list(self, place: Path) -> Samples:
        try:
            column = EACH if self._column is None else self._column
            return list_inputs(place, self._kind, column=column, image_root=self._image_root).samples
        except ConfigError:
            if place.is_dir():  # emptied since
                return Samples(Entries(str(place)))
            raise


def key_named(store: LatentStore, name: str) -> str:
    """The key that a name stands for: a key itself, the name of an input as the store recorded it, or a file.

    Raises:
        ConfigError: it is none of these, or the store holds no latent for it.
    """
    if name in store:
        return name
    sources = store.sources()
    matches = [key for key in sources.get(name, ()) if key in store]
    if not matches:
        ends = [source for source in sources if source.endswith(f"/{name}")]
        matches = [key for source in ends for key in sources[source] if key in store]
    if not matches and (file := Path(name)).is_file():
        key = key_of_bytes(read_input_file(file, max_bytes=KINDS[store.recipe.kind].max_bytes))
        matches = [key] if key in store else []
    if len(set(matches)) == 1:
        return matches[0]
    count = len(set(matches))
    problem = f"stands for {count} latents; name one by its key" if count else "is no key, input or file of this store"
    examples = ", ".join(sorted(sources)[:3])
    raise ConfigError(f"{store.place}: {name!r} {problem}. Its inputs are called {examples or 'by no name'}, …")
