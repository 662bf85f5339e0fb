"""Find a language model's files: a folder, a .gguf file, a Hub id at a commit, or the model in this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...pipeline.errors import ConfigError
from ...pipeline.files.hub.pretrained import list_model_files, require_plain
from ...pipeline.files.hub.transfers import fetch, is_hub_id
from ...pipeline.files.hub.weight_hashes import digest_of_weights, hash_weights
from ...pipeline.files.limits import MAX_WEIGHT_BYTES
from ...pipeline.progress import Progress
from ..worldlet import WEIGHTS

_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja"]


@dataclass(frozen=True, slots=True)
class Weights:
    """A folder with a language model's files, and the identity of its weights.

    What a model is called decides nothing: two names are the same model if its files are (`is_same`).
    """

    folder: Path
    source: str
    """Where to find them again: a folder's absolute path, `ORG/NAME@<commit>`, or `worldlet`."""
    identity: str
    """`hub:ORG/NAME@<40 hex commit>`, or its `content`."""
    gguf: str | None = None
    """The name of the .gguf file in the folder (llama.cpp's format); None for safetensors."""

    @property
    def content(self) -> str:
        """`sha256:<64 hex>` of the files that decide its answers, wherever they lie. A download is hashed when this is
        asked for, which takes about a second per GB the first time.

        Raises:
            ConfigError: a file cannot be read.
        """
        return self.identity if self.identity.startswith("sha256:") else _content_of(self.folder)

    def is_same(self, identity: str, content: str | None = None) -> bool:
        """Whether this is the language model that a run recorded.

        Args:
            identity: as recorded; also of versions that counted every JSON file as a part of a model.
            content: as recorded, where it was.
        Raises:
            ConfigError: a file cannot be read.
        """
        if self.identity == identity:
            return True
        recorded = {identity} if content is None else {identity, content}
        return self.content in recorded or (self.gguf is None and _content_with_all_json(self.folder) in recorded)


def find_weights(lm: str | None, *, progress: Progress | None = None) -> Weights:
    """The files of a language model.

    Args:
        lm: a folder, a .gguf file, or a Hub id (`ORG/NAME` or `ORG/NAME@revision`); None is the embedded model. A Hub
            id is resolved to a commit first; that commit is then fetched, or taken from the local cache.
        progress: is told what is hashed, where that takes long; None is `Progress.to_logger()`.
    Raises:
        ConfigError: there is no such folder, no such repository, no access, or no network and nothing cached.
    """
    if lm in (None, "worldlet"):
        if not (WEIGHTS / "config.json").is_file():
            raise ConfigError(
                f"the embedded language model is missing from this installation ({WEIGHTS}). "
                "Reinstall theworld, or name another model with --lm"
            )
        return Weights(WEIGHTS, "worldlet", _content_of(WEIGHTS))
    try:
        folder = Path(lm).expanduser()
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, of no such user, a NUL in it
        raise ConfigError(f"--lm {lm[:200]!r} cannot be a file or folder: {error}"[:400]) from error
    if is_folder:
        _check_is_model(folder, str(folder))
        return Weights(folder, str(folder.resolve()), _content_of(folder, progress))
    if folder.suffix == ".gguf" and is_file:
        digest = digest_of_weights(folder, progress=progress)
        return Weights(folder.parent, str(folder.resolve()), f"sha256:{digest.hex()}", folder.name)
    if not is_hub_id(lm):
        raise ConfigError(
            f"{lm} is neither a folder here nor a Hub id. Name a folder with config.json and safetensors, "
            "or a Hub id such as google/gemma-2-2b-it"
        )
    snapshot = fetch(
        lm, _FILES, error=ConfigError, instead="pass a local folder to --lm, or leave --lm out for the embedded model"
    )
    _check_is_model(snapshot.folder, lm)
    return Weights(snapshot.folder, snapshot.name, snapshot.identity)


def _check_is_model(folder: Path, name: str) -> None:
    if (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{name} holds an adapter of peft without the model it was tuned from. Merge it (peft's "
            "merge_and_unload, then save_pretrained of model and tokenizer) and name that folder with --lm"
        )
    raise ConfigError(f"{name} holds no language model: it has no config.json")


def _content_of(folder: Path, progress: Progress | None = None) -> str:
    """Of the files that are loaded, and no others: a note beside them makes no other model."""
    try:
        return hash_weights(folder, list_model_files(folder), progress=progress)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the language model in {folder} cannot be read: {error}") from error


def _content_with_all_json(folder: Path) -> str | None:
    """The identity that earlier versions gave a folder; None where it is today's, or they would have refused it."""
    try:
        files = {path for pattern in _FILES for path in folder.glob(pattern)}
        if files == set(list_model_files(folder)):
            return None
        return hash_weights(folder, [require_plain(folder, path, MAX_WEIGHT_BYTES) for path in files])
    except (OSError, ValueError):
        return None
