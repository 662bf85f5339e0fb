"""A store as a data set on the Hugging Face Hub: its tars and records as they are, and a card; and back.

README.md         what it is, how to read it
theworld.json  commits/  shards/*.tar  sources/  prompt…     the files of a webdataset store
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import xxhash

from ...errors import ConfigError, StoreError
from ...files.hub.dataset import HubDataset
from ...files.hub.transfers import upload
from ...machine import own_folder
from ...messages import command, format_bytes, markdown, markdown_code
from ...progress import Progress
from ..folder import load_store, open_store
from ..latent_store import LatentStore
from .transfer import export

CARD = "README.md"
_FILES = (
    *("theworld.json", "commits/*.json", "shards/*.tar"),
    *("prompt*.safetensors", "prompts/*.safetensors", "sources/*.jsonl"),
)
"""Of a store what others can read; not what it knows of this machine, of failures and of repairs."""
_FOLDER = "shared"


def push_store(path: Path | str, url: str, *, private: bool = False, progress: Progress | None = None) -> str:
    """Upload a store, with a card; one that is no tars on a disk is exported first. What the Hub has is not sent again.

    Args:
        path: a store, or a cache folder with one store in it; in a bucket too.
        url: `hf://datasets/ORG/NAME`, made if there is none.
        private: whether a new data set is private.
    Returns:
        The address of the commit.
    Raises:
        ConfigError: `url` is another place. DamagedShardError: the store is damaged.
        StoreError: the Hub refuses, or the store holds nothing.
    """
    repository = _repository(url)
    store = open_store(path, check_sizes=True)
    if not len(store):
        raise StoreError(f"{store.place} holds no latents yet, so there is nothing to share")
    progress = progress or Progress.silent()
    if paths := sum(name.startswith("/") for name in store.sources()):
        progress.warn(f"note: {paths:,} names of inputs are paths of this machine, and everybody will see them")
    with _as_tars(store, progress) as tars, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CARD).write_text(card(tars, repository), encoding="utf-8")
        send = partial(upload, hub_id=repository, private=private, error=StoreError, repo_type="dataset")
        address = send(tars.path, patterns=_FILES, message="Latents of theworld")
        send(Path(folder), message="What they are")
    return address


@contextmanager
def fetched_store(url: str) -> Generator[LatentStore]:
    """A store on the Hub, downloaded to this disk for the block; a download that was cut goes on where it stopped.

    Raises:
        StoreError: the Hub has none there, or cannot be reached. DamagedShardError: what arrived is no whole store.
    """
    _repository(url.partition("@")[0])
    data_set = HubDataset.find(url)
    folder = own_folder() / _FOLDER / xxhash.xxh3_128_hexdigest(data_set.at.encode())
    data_set.download(folder, _FILES)
    if not (folder / "theworld.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        raise StoreError(f"{data_set.name} holds no store of theworld: it has no theworld.json")
    is_kept = False
    try:
        yield open_store(folder, tolerate_damage=True, check_sizes=True)
    except KeyboardInterrupt:
        is_kept = True  # to go on with it; after damage it is fetched anew
        raise
    finally:
        if not is_kept:
            shutil.rmtree(folder, ignore_errors=True)


def card(store: LatentStore, repository: str) -> str:
    """The card of a data set, as Markdown."""
    recipe, records = store.recipe, store.records()
    facts = records[0].facts if records else {}
    world = facts.get("world", {})
    name = str(world.get("name") or recipe.world) if isinstance(world, dict) else recipe.world
    name = Path(name).name if Path(name).is_absolute() else name
    size = sum(shard.bytes for shard in store.shards.values())
    shape = "x".join(map(str, store.sample_shape))
    return f"""---
tags:
- theworld
- world-model
- webdataset
configs:
- config_name: default
  data_files: "shards/*.tar"
---
# {markdown(repository)}

Latents of a world model, made once by theworld: for each image what the world model expects to happen next.

| | |
|---|---|
| world model | {markdown_code(name)} ({markdown(recipe.world)}) |
| recipe | {markdown(recipe.id)} |
| kind | {markdown(recipe.kind)}, {recipe.rollout_steps} rollout steps, {recipe.height}x{recipe.width} pixels |
| samples | {len(store):,}, each {shape} (channels, latent frames, height, width) |
| values | {markdown(recipe.dtype)}, standardised |
| files | {len(store.shards):,} tars, {format_bytes(size)} |

Keys are by content of the inputs, which are not part of this data set.

## Read it with theworld

```sh
{command("cache", "merge", "latents", f"hf://datasets/{repository}")}
```

Each bit is checked on the way. `theworld train` then reads the store in `latents`.

## Read it with webdataset

```python
from pathlib import Path
from huggingface_hub import snapshot_download
import webdataset

folder = snapshot_download({repository!r}, repo_type="dataset", allow_patterns="shards/*.tar")
tars = sorted(map(str, Path(folder).glob("shards/*.tar")))
for sample in webdataset.WebDataset(tars, shardshuffle=False).decode():
    sample["__key__"], sample["npy"], sample["json"]
```
"""


@contextmanager
def _as_tars(store: LatentStore, progress: Progress) -> Generator[LatentStore]:
    if store.format == "webdataset" and store.place.is_local:
        yield store
        return
    name = str(store.path.resolve() if store.place.is_local else store.place)
    digest = xxhash.xxh3_128_hexdigest(name.encode("utf-8", "surrogatepass"))
    folder = own_folder() / _FOLDER / digest
    target, copied = export(store, folder, format="webdataset", progress=progress)
    if copied.damaged:
        raise StoreError(f"{store.place} is not shared: {copied.damaged[0]}. Repair it first")
    target.close()
    yield load_store(target.path)
    shutil.rmtree(folder, ignore_errors=True)  # kept after an error, to go on


def _repository(url: str) -> str:
    repository, revision, path = HubDataset.parse(url)
    if revision is not None or path.strip("/"):
        raise ConfigError(f"{url}: a store is a whole data set. Write hf://datasets/ORG/NAME")
    return repository
