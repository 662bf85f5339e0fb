"""Find, open and create the stores of a cache folder.

<cache>/<label>-<12 digits of the recipe id>/     found by its theworld.json: the folder may have any name
    theworld.json              what the latents are; published once, the rest of the layout follows from it
    commits/<n>.json           the record of shard n; no record, no shard
    zarr.json, latents/        plain Zarr: zarr.open(store)["latents"]          (format zarr)
    shards/<n>.tar             <key>.npy and <key>.json of each sample          (format webdataset)
    index*.safetensors         snapshot of the records of a large store; can be rebuilt
    failed/  sources/          what became of the inputs
    prompt.safetensors         embeddings of the recipe's prompt, or of each sample's own in prompts/
    dropped/  retiring/        keys taken out on purpose; shards on their way out       (made when needed)
    tmp/  lost+found/          unfinished files; what a person moved out of the way
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from ..errors import (
    ConfigError,
    StoreError,
    StoreMismatchError,
    StoreNotFoundError,
)
from ..files.atomic import made_folder, make_folders, sync_folder
from ..files.file_system import SERVER_ERRORS
from ..files.places.folder import Folder
from ..files.places.local import place_of
from ..files.places.place import Place
from ..files.sealed import seal
from ..latents.recipe import Recipe, difference
from ..latents.spec import LatentSpec, latent_frames
from ..messages import command
from .find import (
    MANIFEST,
    find_stores,
    is_of,
    is_store,
    refuse_store,
    require_folder,
    resolve_place,
    resolve_store,
    store_of,
    stores_in,
)
from .formats import StoreFormat
from .formats.base import ShardLayout
from .formats.layouts import layout_of
from .formats.zarr import ZarrLayout
from .latent_store import LatentStore
from .manifest import MAX_SHARD_SIZE, Manifest, StatedSpec, check_sample_size, meaning_of, read_manifest
from .payloads import require_payloads
from .promises import lines_of, promised_and_gone, report_gone
from .records import RECORD_BYTES_OF_ROW, RECORD_LIMIT_BYTES, unreadable
from .zarr_group import ZarrGroup

__all__ = [
    "LatentStore",
    "StoreFormat",
    "create_store",
    "find_store",
    "find_stores",
    "is_store",
    "open_store",
    "refuse_store",
    "require_folder",
    "resolve_place",
    "resolve_store",
    "stores_in",
]

PROMPT = "prompt.safetensors"
"""Embeddings of the recipe's prompt, where it has one."""
PROMPTS = "prompts"
"""Folder of the embeddings of the samples' own prompts, where they have them."""
_LABEL_LENGTH = 80
_LABEL = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{_LABEL_LENGTH - 1}}}")
_FOLDERS = ("commits", "failed", "sources", "tmp", "lost+found")


def open_store(path: str | Path | Place, *, tolerate_damage: bool = False, check_sizes: bool = False) -> LatentStore:
    """Open a store that exists. Writes nothing.

    Args:
        path: a store, or a cache folder with exactly one store in it; a path, or a URL of a bucket.
        tolerate_damage: list damaged records in the store's `damage` instead of raising. Only for a
            caller that makes the lost latents again; a training must not continue without them.
        check_sizes: look once at the size of every payload (a second for 100,000), before hours of work rely on them.
    Raises:
        StoreNotFoundError: there is none.
        StoreError: there are several, or it is of a newer format.
        StoreMismatchError: `latents/zarr.json` describes another array; noted in `damage` where that is tolerated.
        DamagedShardError: `theworld.json` or a commit record is not what was written; with `check_sizes`, payloads are
            missing or cut short.
    """
    store = _load(resolve_place(path), tolerate_damage=tolerate_damage)
    if check_sizes:
        require_payloads(store)
    return store


def load_store(path: str | Path | Place) -> LatentStore:
    """Open just this store, whatever its state: for who looks after stores. Damage is listed, not raised.

    Raises:
        StoreNotFoundError: there is none.
        StoreError: it is of a newer format.
        DamagedShardError: `theworld.json` is not what was written.
    """
    place = place_of(path)
    if not is_store(place):
        raise StoreNotFoundError(f"{place} is not a store: it holds no theworld.json")
    return _load(place, tolerate_damage=True)


def open_to_add(path: str | Path | Place) -> LatentStore:
    """`load_store` for a worker: until it asks which keys are here, no record is read and no folder listed."""
    return _load(place_of(path), tolerate_damage=True, load=False)


def find_store(cache: str | Path | Place, recipe: Recipe) -> LatentStore | None:
    """The store of a recipe in a cache folder, to see which latents it holds; None where there is none. Writes nothing.

    Payloads are looked at: the keys of those that are missing or cut short count as missing.

    Raises:
        ConfigError: `cache` is a store itself.
        StoreError: as `open_store`, but damaged records are listed in the store's `damage`.
    """
    place = _place_of_recipe(place_of(cache), recipe)
    if place is None:
        return None
    store = _load(place, tolerate_damage=True)
    _check_recipe(store, recipe)
    require_payloads(store)
    return store


def create_store(
    cache: str | Path | Place,
    recipe: Recipe,
    spec: LatentSpec,
    *,
    label: str,
    shard_size: int,
    format: StoreFormat | None = None,
) -> LatentStore:
    """Open the recipe's store in `cache` for writing; make it where there is none. Safe to call from many processes.

    Args:
        cache: a folder, made if missing, or a URL of a bucket.
        label: leads the folder's name: letters, digits, dot, dash, underscore.
        shard_size: samples a full shard holds; a store that exists keeps its own.
        format: None is what the store has; zarr, if it is new.
    Returns:
        The store. Damaged records do not stop it: it lists them in `damage`, and their keys count as missing.
    Raises:
        StoreError: the folder cannot be written to; found out here, not after the first rollout.
        StoreMismatchError: the store found differs in recipe, spec or format.
        ConfigError: label or shard size cannot be used, or `cache` is a store itself or a URL.
    """
    if not _LABEL.fullmatch(label):
        raise ConfigError(f"a store's label is up to 80 letters, digits and . _ - (not first), got {label!r}")
    if not 1 <= shard_size <= MAX_SHARD_SIZE:
        raise ConfigError(f"a shard holds 1 to {MAX_SHARD_SIZE} samples, got {shard_size}")
    manifest = Manifest(
        layout=format or "zarr",
        recipe_id=recipe.id,
        recipe=recipe.model_dump(mode="json"),
        spec=StatedSpec.model_validate(asdict(spec)),
        shard_size=shard_size,
    )
    check_sample_size(recipe, spec, where="this recipe")
    record_bytes = shard_size * (RECORD_BYTES_OF_ROW + 8 * latent_frames(recipe.rollout_steps))
    if record_bytes > RECORD_LIMIT_BYTES // 2:  # the other half is for its facts
        most = shard_size * RECORD_LIMIT_BYTES // 2 // record_bytes
        raise ConfigError(
            f"the record of a shard of {shard_size} samples would have {record_bytes} bytes, as it holds a checksum of "
            f"every frame. Make shards of at most {most} (--shard-size)"
        )
    top = place_of(cache)
    with top.writing():
        path = _place_of_recipe(top, recipe) or _free_place(top, f"{label}-{recipe.id[:12]}", recipe)
        _lay_out(path, manifest)
    store = _load(path, tolerate_damage=True)
    _check_recipe(store, recipe)
    if store.spec != spec:
        raise StoreMismatchError(
            f"{path} holds latents of another latent space: {store.spec}, not {spec}. Choose another --cache folder"
        )
    if format not in (None, store.format):
        raise StoreMismatchError(
            f"{path} holds this recipe as {store.format} already. Use --format {store.format}, choose another folder, "
            f"or convert it: {command('cache', 'export', str(path), 'FOLDER', '--format', format)}"
        )
    require_payloads(store)
    _keep_trace(store)
    store.begin_writing()
    return store


def label_of(name: str, ending: str = "") -> str:
    """A label for `create_store` of whatever somebody called something, cut where `ending` would not fit."""
    start = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-") or "store"
    return f"{start[: _LABEL_LENGTH - len(ending)]}{ending}"


def open_to_write(path: str | Path | Place) -> LatentStore:
    """Open just this store, to add to it; as `load_store`, and what is missing of its folders is made.

    Raises:
        StoreNotFoundError, DamagedShardError: as `load_store`.
        StoreError: the folder cannot be written to.
    """
    place = load_store(path).place
    with place.writing():
        _lay_out(place, read_manifest(place))
    store = load_store(place)
    require_payloads(store)
    _keep_trace(store)
    store.begin_writing()
    return store


def make_own_folders(path: Path) -> None:
    """The folders every store has. A copy may have left out the empty ones.

    Raises:
        StoreError: one is a link, which could lead what is written here anywhere.
        OSError: one cannot be made.
    """
    for name in (*_FOLDERS, PROMPTS, "latents", "latents/c", "key", "key/c", "time_s", "time_s/c", "shards"):
        if (path / name).is_symlink():
            raise StoreError(
                f"{path / name} is a symbolic link, so nothing is written into this store. If the link is yours, put "
                "the folder itself there, or link the whole store instead"
            )
    make_folders(path)
    for name in _FOLDERS:
        with made_folder(path, path / name):
            pass


def _lay_out(place: Place, manifest: Manifest) -> None:
    """Make what is missing of a store, whoever began it, and prove that files can be placed in it."""
    if not isinstance(place, Folder):
        place.self_test()
        _publish_manifest(place, manifest)
        return
    path = place.path
    make_own_folders(path)
    if not (path / MANIFEST).exists():
        for folder in path.parents:  # whoever made them may have been cut before their names were durable
            with suppress(PermissionError):
                sync_folder(folder)
            if folder.is_mount():
                break
    layout = _publish_manifest(place, manifest)
    payloads = path / layout.payload_folder
    with made_folder(path, payloads):
        pass
    for folder in (payloads, *payloads.parents):  # names that a creator cut short may have left unsynced
        sync_folder(folder)
        if folder == path.parent:
            break
    place.self_test("commits", layout.payload_folder)


def _publish_manifest(place: Place, manifest: Manifest) -> ShardLayout:
    """Say what the store is, unless somebody has said so before; and how its shards are laid out."""
    place.create(MANIFEST, seal(manifest.model_dump(mode="json")))
    winner = read_manifest(place)
    recipe, spec = meaning_of(winner, place)
    layout = layout_of(recipe, spec, winner.shard_size, winner.layout, winner.format)
    if isinstance(layout, ZarrLayout):
        ZarrGroup(place, layout, recipe, spec).lay_out()
    return layout


def _keep_trace(store: LatentStore) -> None:
    """Before anybody publishes anew what is here: write down what was promised and is gone, and say so."""
    gone = promised_and_gone(store)
    if report := report_gone(store, gone):
        store.damage += (*lines_of(store, gone), f"What is missing is listed in {report}")


def _place_of_recipe(cache: Place, recipe: Recipe) -> Place | None:
    refuse_store(cache)
    return store_of(cache, recipe.id)


def _free_place(cache: Place, name: str, recipe: Recipe) -> Place:
    """Where a new store goes: `name`, unless somebody gave that name to a store of another recipe."""
    place, number = cache.below(name), 1
    while is_store(place) and not is_of(place, recipe.id):
        number += 1
        place = cache.below(f"{name}-{number}")
    return place


def _check_recipe(store: LatentStore, recipe: Recipe) -> None:
    if store.recipe != recipe:
        fields = difference(recipe, store.recipe).items()
        differing = ", ".join(f"{name}: {stored} here, {requested} asked for" for name, (requested, stored) in fields)
        raise StoreMismatchError(f"{store.place} is of another recipe ({differing}). Choose another --cache folder")


def _load(place: Place, *, tolerate_damage: bool, load: bool = True) -> LatentStore:
    manifest = read_manifest(place)
    recipe, spec = meaning_of(manifest, place)
    try:
        store = LatentStore(
            place,
            recipe,
            spec,
            manifest.shard_size,
            manifest.layout,
            manifest.format,
            tolerate_damage=tolerate_damage,
            load=load,
        )
    except FileNotFoundError as error:
        raise StoreError(
            f"{place} is incomplete: {error.filename} is missing. Was the folder copied as a whole?"
        ) from error
    except OSError as error:
        if error.errno in SERVER_ERRORS:
            raise unreadable(str(place), None, error) from error
        cause = f"{error.filename}: {error.strerror}"
        raise StoreError(f"{place} cannot be read: {cause}. Are its folders yours, and folders?") from error
    try:
        if store.zarr_group is not None:
            store.zarr_group.check()
    except StoreMismatchError as error:
        if not tolerate_damage:
            raise
        store.damage += (str(error),)
    return store
