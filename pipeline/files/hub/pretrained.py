"""Load what transformers and diffusers keep in a folder, without trusting the folder: the only place that calls them.

A model's folder may come from a stranger. The library sees a private folder with links to the files that `NAMES`
lists, so it can read nothing else: no Python file, no adapter, no file that a config names. Configs are copied there
without names of other files. Refused are configs that name code (`auto_map`), a kernel to download, or sizes that the
weights do not have. Nothing is read from the Hub, whatever a folder is called.
"""

from __future__ import annotations

import json
import logging
import math
import re
import struct
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from ...errors import TheWorldError
from ...machine import is_out_of_memory
from ...messages import name_some, printable
from .. import limits
from ..changed import IS_LFS_POINTER, LFS_POINTER
from ..plain import open_file, read_json
from .gguf_header import check_gguf
from .tokenizer_json import check_tokenizer_json
from .weight_checks import RefusedError, check_left_out, check_number_types, check_weight_files

NAMES = (
    *("config.json", "generation_config.json", "model_index.json", "scheduler_config.json"),
    *("preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("tokenizer.model", "spiece.model", "chat_template.jinja", "*.safetensors", "*.safetensors.index.json"),
)
"""Names of the files that are read from a model's folder; all others are as if they were not there."""
ATTENTIONS = (None, "eager", "sdpa", "flash_attention_2", "flex_attention")
"""Attention that a config may name; transformers takes any other name for code to download."""
TOKENIZERS = ("Gemma", "T5", "Qwen2", "CLIP", "Llama", "GPT2", "PreTrained", "TokenizersBackend")
"""How the names of tokenizer classes begin that may be loaded."""

_CODE = ("auto_map", "custom_generate", "custom_pipelines", "use_kernels", "kernel_config", "quantization_config")
_COUNTS = re.compile(r"layers?$|blocks?$|heads?$|experts?$|depth$")
_BIG = ("tokenizer.json", "vocab.json", "added_tokens.json")
_NUMBERS = {
    "config.json": limits.MAX_MODEL_NUMBER,
    "scheduler_config.json": limits.MAX_SCHEDULER_NUMBER,
    "preprocessor_config.json": limits.MAX_PICTURE_NUMBER,
}
"""The largest number in each config of which something is allocated."""
_LIBRARIES = ("transformers", "diffusers")


def load_pretrained(
    kind: Any, root: Path, part: str = "", *, error: type[TheWorldError], what: str, **options: Any
) -> Any:
    """Return `kind.from_pretrained` of a model's folder, read as the head of this file says.

    Args:
        kind: a class of transformers or diffusers, or one of ours with a `from_pretrained(folder)`; the caller names
            it, never the folder.
        root: the model's folder; files may not lie outside of it.
        part: the subfolder to load from.
        error: the type of error to raise.
        what: what is loaded, for messages: "language model".
        options: further arguments of `from_pretrained`, such as `dtype`.
    Raises:
        TheWorldError: of type `error`: the folder holds what is refused, or the library cannot load it.
    """
    folder = root / part
    _escape_warnings()
    try:
        files = list_model_files(root, part)
        gguf = options.get("gguf_file")
        if gguf is not None:
            files = [*files, require_plain(root, folder / gguf, limits.MAX_WEIGHT_BYTES)]
            check_gguf(folder / gguf)
        configs = {path: config for path in files if (config := _checked(path)) is not None}
        with _view(files, configs) as view:
            try:
                loaded = _load(kind, view, files, options)
            except BaseException as problem:  # the libraries raise almost anything on a config that is wrong
                if not is_of_library(problem) or is_out_of_memory(problem):  # not the files' fault
                    raise
                why = str(problem) if isinstance(problem, RefusedError) else f"{type(problem).__name__}: {problem}"
                raise ValueError(why.replace(str(view), str(folder))) from problem
        owners: tuple[Any, ...] = (loaded, getattr(loaded, "config", None))
        for owner in owners:
            if getattr(owner, "name_or_path", None) == str(view):
                owner.name_or_path = str(folder)
        return loaded
    except (OSError, ValueError, RecursionError) as problem:
        raise error(f"the {what} in {folder} cannot be loaded: {problem}") from problem


def is_of_library(problem: BaseException) -> bool:
    """Whether it is an error, and no interruption. A library in Rust panics with what is no `Exception`."""
    return isinstance(problem, Exception) or type(problem).__name__ == "PanicException"


@contextmanager
def refusals_of_tokenizer(error: type[TheWorldError], folder: Path) -> Generator[None]:
    """Inside, what a stranger's tokenizer fails with on a text becomes an error in words of the type `error`."""
    try:
        yield
    except TheWorldError:
        raise
    except BaseException as problem:
        if not is_of_library(problem):
            raise
        raise error(
            f"the tokenizer in {folder} cannot read a text: {type(problem).__name__}: {problem}. Use the tokenizer "
            "files that come with the model"
        ) from problem


def _escape_warnings() -> None:
    """Warnings of the libraries quote configs as they are: from now on their handlers show them as text."""
    for name in _LIBRARIES:
        for handler in logging.getLogger(name).handlers:
            if _escape not in handler.filters:
                handler.addFilter(_escape)


def _escape(record: logging.LogRecord) -> bool:
    record.msg, record.args = "\n".join(map(printable, record.getMessage().split("\n"))), None
    return True


def _load(kind: Any, view: Path, files: Sequence[Path], options: Mapping[str, Any]) -> Any:
    if not str(kind.__module__).startswith(_LIBRARIES):  # a reader of our own
        return kind.from_pretrained(str(view), **options)
    import torch

    libraries = {"local_files_only": True}
    if str(kind.__module__).startswith("transformers"):
        libraries["trust_remote_code"] = False
    if kind.__name__ == "AutoTokenizer" and "gguf_file" not in options:
        _check_vocabulary(files)
    if not _is_class_of(kind, torch.nn.Module):
        return kind.from_pretrained(str(view), **libraries, **options)
    if not any(path.suffix == ".safetensors" for path in files):
        raise RefusedError("it holds no *.safetensors; weights in other formats can run code and are not read")
    check_weight_files(str(kind.__module__).partition(".")[0], view)
    # a config may state any size: it is compared on the meta device, where nothing is allocated
    stated_shapes = sum(math.prod(shape) for path in files for shape in _shapes(path).values())
    # a header may state any shape, too: the smallest number takes half a byte
    held = min(stated_shapes, sum(2 * path.stat().st_size for path in files if path.suffix == ".safetensors"))
    with torch.device("meta"), _few_modules():
        if "trust_remote_code" in libraries:
            empty = kind(kind.config_class.from_pretrained(str(view), **libraries))
        else:
            empty = kind.from_config(kind.load_config(str(view), local_files_only=True))
    stated = sum(parameter.numel() for parameter in empty.parameters())
    if stated > held:
        raise RefusedError(f"its config describes {stated:,} parameters, and its weights hold {held:,}")
    computed = sum(buffer.numel() for buffer in empty.buffers())
    if computed > held + limits.MAX_BUFFER_NUMBERS:
        raise RefusedError(f"its config describes tables of {computed:,} numbers, and its weights hold {held:,}")
    check_number_types({name: dtype for path in files for name, dtype in _types(path).items()}, empty)
    model, facts = kind.from_pretrained(str(view), output_loading_info=True, **libraries, **options)
    if missing := sorted(facts["missing_keys"]):
        raise RefusedError(f"its weights lack {name_some(missing)}, which would be random")
    check_left_out(model, facts["unexpected_keys"])
    return model


def _check_vocabulary(files: Sequence[Path]) -> None:
    """Refuse a folder without what a tokenizer splits texts by: transformers makes one of no words, in silence."""
    if not any(path.name == "tokenizer.json" or path.suffix == ".model" for path in files):
        raise RefusedError(
            "it has no tokenizer.json and no tokenizer.model, so no text could be read. Copy the tokenizer's files "
            "from the model that it was tuned from, or save the tokenizer there"
        )


@contextmanager
def _few_modules() -> Generator[None]:
    """Inside, a model of too many parts is refused while it is made: even without weights they take time and memory."""
    from torch.nn.modules.module import register_module_module_registration_hook

    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1
        if count > limits.MAX_MODULES:
            raise RefusedError(f"its config describes more than {limits.MAX_MODULES:,} layers and parts of layers")

    hook = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()


def _is_class_of(kind: object, base: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, base)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return tensor_shapes(path) if path.suffix == ".safetensors" else {}


def _types(path: Path) -> dict[str, str]:
    header = _header(path) if path.suffix == ".safetensors" else {}
    return {name: str(facts.get("dtype")) for name, facts in header.items() if name != "__metadata__"}


def list_model_files(root: Path, part: str = "") -> list[Path]:
    """Return the files of a model's folder that are read, each a regular file of that folder.

    Raises:
        OSError: the folder cannot be listed.
        ValueError: a file is a pipe or device, is too large, or is a link out of the folder.
    """
    seen = (path for path in (root / part).iterdir() if not path.name.startswith("."))  # such as ._NAME of macOS
    names = (path for path in seen if any(fnmatchcase(path.name, name) for name in NAMES))
    return [require_plain(root, path, _limit(path.name)) for path in sorted(names)]


def require_plain(root: Path, path: Path, limit_bytes: int) -> Path:
    """Return the path, if it is a regular file of limited size that lies in the folder.

    Raises:
        OSError: it cannot be read.
        ValueError: it is anything else.
    """
    try:
        with open_file(path, limit_bytes, within=root) as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ValueError(IS_LFS_POINTER)
    except ValueError as problem:
        raise ValueError(f"{path.name} cannot be read: {problem}") from problem
    return path


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the header of a safetensors file states; no tensor is read.

    Raises:
        OSError: it cannot be read.
        ValueError: it has no such header.
    """
    header = _header(path)
    try:
        return {name: tuple(map(int, facts["shape"])) for name, facts in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        raise ValueError(f"{path.name} is not a whole safetensors file") from problem


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file; raises as `tensor_shapes`."""
    with open_file(path, limits.MAX_WEIGHT_BYTES) as file:
        [length] = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if length > limits.MAX_WEIGHT_HEADER_BYTES:
            raise ValueError(
                f"{path.name} states a header of {length:,} bytes; the limit is {limits.MAX_WEIGHT_HEADER_BYTES:,}"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{path.name} is not a whole safetensors file") from problem
    if not isinstance(header, dict):
        raise ValueError(f"{path.name} is not a whole safetensors file")
    return cast(dict[str, Any], header)


def _limit(name: str) -> int:
    if name.endswith(".safetensors"):
        return limits.MAX_WEIGHT_BYTES
    big = name in _BIG or name.endswith((".model", ".index.json"))
    return limits.MAX_TOKENIZER_BYTES if big else limits.MAX_CONFIG_BYTES


def _checked(path: Path) -> dict[str, Any] | None:
    """The config in a file, None of a file of another sort. A file is read once: it may change at any time.

    Raises:
        ValueError: it names code, places or sizes that no model has.
    """
    if path.name == "tokenizer.json":
        check_tokenizer_json(path)
    if path.suffix != ".json" or path.name in _BIG:
        return None
    config = _object(path)
    if path.name.endswith(".index.json"):
        files = config.get("weight_map")
        names = set(cast(dict[str, object], files).values()) if isinstance(files, dict) else set[object]()
        if wrong := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
            raise ValueError(f"{path.name} names {wrong[0]!r}, which is no file of this folder")
        return config
    for name, value in _settings(config):
        if name in _CODE and value:
            raise ValueError(
                f"{path.name} sets {name}, which names code or another package to load. theworld runs no code that a "
                f"model's folder names: remove {name} if the model is one of transformers' or diffusers' own"
            )
        if name in ("attn_implementation", "_attn_implementation") and value not in ATTENTIONS:
            raise ValueError(f"{path.name} sets {name} = {value!r}, which would be downloaded. Remove it")
        if name == "tokenizer_class" and value is not None and not str(value).startswith(TOKENIZERS):
            raise ValueError(f"{path.name} names the tokenizer {value!r}; those that are read: {', '.join(TOKENIZERS)}")
        if path.name == "config.json" and isinstance(value, list):
            length = len(cast(list[object], value))
            if length > limits.MAX_MODEL_LIST:
                raise ValueError(f"{path.name}: {name} is a list of {length:,}; the limit is {limits.MAX_MODEL_LIST:,}")
        if path.name in _NUMBERS and isinstance(value, int) and not isinstance(value, bool):
            most = limits.MAX_LAYERS if _COUNTS.search(name) else _NUMBERS[path.name]
            if abs(value) > most:
                raise ValueError(f"{path.name} sets {name} = {value}; the limit is {most:,}")
    return config


def _object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path, _limit(path.name))
    except ValueError as problem:
        raise ValueError(f"{path.name} cannot be read: {problem}") from problem
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} cannot be read: it is not a JSON object")
    return cast(dict[str, Any], value)


def _settings(value: object) -> Iterator[tuple[str, object]]:
    """Every setting of a config, those of nested ones too."""
    todo: list[object] = [value]
    while todo:
        inner = todo.pop()
        if isinstance(inner, dict):
            for name, setting in cast(dict[str, object], inner).items():
                yield name, setting
                todo.append(setting)
        elif isinstance(inner, list):
            todo += cast(list[object], inner)


@contextmanager
def _view(files: Sequence[Path], configs: Mapping[Path, Mapping[str, Any]]) -> Generator[Path]:
    """A private folder with these files: links, and copies of configs without names of other files."""
    with tempfile.TemporaryDirectory(prefix="theworld-model-") as place:
        view = Path(place)
        for path in files:
            if path in configs:
                (view / path.name).write_text(json.dumps(_without_places(configs[path])), encoding="utf-8")
            else:
                (view / path.name).symlink_to(path.resolve())
        yield view


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the settings that name a file or a folder to read, such as an old `tokenizer_file`."""
    names = ("name_or_path", "_name_or_path", "base_model_name_or_path")
    return {
        name: value for name, value in config.items() if name not in names and not name.endswith(("_file", "_files"))
    }
