"""A language model's tokenizer by the `tokenizers` library alone: a tenth of a second, where transformers takes three.

Only what cannot be read in two ways is read so: a tokenizer.json of no class of its own, whose special tokens are all
in it, beside a config that states its sizes. For all else `read_prompt_format` returns None, and transformers reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer

from ...pipeline.errors import ConfigError
from ...pipeline.files.hub.pretrained import load_pretrained
from ...pipeline.files.limits import MAX_CONFIG_BYTES
from ...pipeline.files.plain import read_json
from .architectures import TRIED
from .prompt_format import PromptFormat, TokenizerOnly
from .weights import Weights

_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Those that take tokenizer.json as it is; others build their own from its vocabulary."""
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_CHANGES_NOTHING = (
    *("backend", "tokenizer_class", "model_max_length", "padding_side", "truncation_side", "is_local"),
    *("clean_up_tokenization_spaces", "add_bos_token", "add_eos_token", "model_input_names", "chat_template"),
)
"""Settings of tokenizer_config.json without a say in the ids of a text."""
_OTHER_FILES = ("special_tokens_map.json", "added_tokens.json")


class _UnclearError(ValueError):
    """What only transformers can say."""


class FileTokenizer:
    """A tokenizer.json, with the part of a `PreTrainedTokenizerBase` that `PromptFormat` uses."""

    def __init__(self, tokenizer: Tokenizer, special: Mapping[str, str], chat_template: str | None) -> None:
        """
        Args:
            special: name of a special token -> the token.
        """
        self._tokenizer = tokenizer
        self.special_tokens_map = dict(special)
        self.chat_template = chat_template
        self.added_tokens_decoder = tokenizer.get_added_tokens_decoder()
        self.all_special_tokens = list(dict.fromkeys(special.values()))
        self.all_special_ids = [tokenizer.token_to_id(token) for token in self.all_special_tokens]

    @classmethod
    def from_pretrained(cls, folder: str) -> FileTokenizer:
        """The tokenizer in a folder.

        Raises:
            ValueError: the files leave open how transformers would read them.
        """
        place = Path(folder)
        settings = _object(place / "tokenizer_config.json")
        if any((place / name).exists() for name in _OTHER_FILES) or settings.get("tokenizer_class") not in _CLASSES:
            raise _UnclearError("of a class of its own")
        if unknown := settings.keys() - {*_CHANGES_NOTHING, *_SPECIAL}:
            raise _UnclearError(f"settings {sorted(unknown)}")
        template = settings.get("chat_template")
        if (jinja := place / "chat_template.jinja").is_file():
            template = jinja.read_text(encoding="utf-8")
        if not (template is None or isinstance(template, str)):
            raise _UnclearError("several chat templates")
        tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        special = {name: _text(settings[name]) for name in _SPECIAL if settings.get(name) is not None}
        added = {str(token.content): token.special for token in tokenizer.get_added_tokens_decoder().values()}
        if not {"bos_token", "eos_token"} <= special.keys() or not all(added.get(token) for token in special.values()):
            raise _UnclearError("special tokens that its vocabulary does not mark")
        return cls(tokenizer, special, template)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        """The ids of a text, as of transformers."""
        return {"input_ids": self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of ids, as of transformers."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def _id_of(self, name: str) -> int | None:
        token = self.special_tokens_map.get(name)
        return None if token is None else self._tokenizer.token_to_id(token)

    @property
    def bos_token_id(self) -> int | None:
        """Of <bos>."""
        return self._id_of("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Of <eos>."""
        return self._id_of("eos_token")

    @property
    def unk_token_id(self) -> int | None:
        """Of <unk>; None where any text has tokens."""
        return self._id_of("unk_token")

    @property
    def pad_token_id(self) -> int | None:
        """Of <pad>."""
        return self._id_of("pad_token")


def read_prompt_format(weights: Weights) -> PromptFormat | None:
    """The prompt format of a language model, without transformers; None where only transformers can say.

    Raises:
        ConfigError: a file is damaged or refused.
    """
    if weights.gguf or (config := _config(weights.folder)) is None:
        return None
    try:
        tokenizer = load_pretrained(FileTokenizer, weights.folder, error=ConfigError, what="tokenizer")
    except ConfigError:  # also of what is damaged: transformers says how
        return None
    return TokenizerOnly(tokenizer, weights, config)


def _config(folder: Path) -> Any | None:
    """The sizes that a config states itself; None where a class of transformers would have to fill them in."""
    try:
        stated = _object(folder / "config.json")
    except (OSError, ValueError):
        return None
    names: object = stated.get("architectures")
    name = str(names[0]) if isinstance(names, list) and len(names) == 1 else ""
    if name not in TRIED or TRIED[name].text_class is not None or {"vision_config", "text_config"} & stated.keys():
        return None
    sizes = {field: stated.get(field) for field in ("vocab_size", "max_position_embeddings")}
    if not all(type(size) is int for size in sizes.values()) or "image_token_id" in stated:
        return None
    config = SimpleNamespace(**sizes)
    config.get_text_config = lambda: config
    return config


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path, MAX_CONFIG_BYTES)
    if not isinstance(value, dict):
        raise _UnclearError(f"{path.name} is no JSON object")
    return value


def _text(token: Any) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise _UnclearError("a special token that is no text")
    return content
