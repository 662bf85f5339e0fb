"""Prompts and answers as token ids, in a language model's own format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from unicodedata import normalize

from ...pipeline.errors import ConfigError, QuestionError
from ...pipeline.files.hub.chat_texts import template_of
from ...pipeline.files.hub.pretrained import refusals_of_tokenizer
from .chat_template import ChatFormat, chat_format
from .weights import Weights

_PLAIN_PROMPT = "question: {question} answer:"
"""For tokenizers without a chat template; the format the worldlet LM was trained on."""


_SHOWN = 80  # letters of a text in a message


@dataclass(frozen=True, slots=True, eq=False)
class _ControlTokens:
    """The words that a tokenizer reads as control tokens; not <unk>, which any unknown word becomes."""

    words: Mapping[int, str]
    """By their ids."""
    folded: Mapping[str, Sequence[str]]
    """`_folded`, by first letter: few texts have a letter that begins one of thousands."""

    def may_be_in(self, text: str) -> bool:
        """False only for a text without any of them."""
        text = _folded(text)
        return any(word in text for letter in self.folded.keys() & {*text, ""} for word in self.folded[letter])


@lru_cache(maxsize=4)  # thousands of added tokens, asked for with each question
def _control_tokens(tokenizer: Any, chat: str) -> _ControlTokens:
    """Read a tokenizer's control tokens, once: none may be added to it later.

    Args:
        chat: its chat template, and what that writes. Its words steer, too, where a tokenizer does not mark them.
    """
    added = {id_: (str(token), token.special) for id_, token in tokenizer.added_tokens_decoder.items()}
    control = {id_: word for id_, (word, special) in added.items() if special or word in chat}
    control |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    unknown = tokenizer.unk_token_id
    words = {id_: word for id_, word in control.items() if id_ != unknown and word.strip()}
    folded: dict[str, list[str]] = {}
    for word in map(_folded, words.values()):
        folded.setdefault(word[:1], []).append(word)
    return _ControlTokens(words, folded)


def _folded(text: str) -> str:
    """The text as the most forgiving tokenizer may compare it with its control tokens: <EOS> may be one, too."""
    return normalize("NFKC", text).casefold()


def _ids_in(value: Any) -> set[int]:
    """The ids in a setting of a config, which is one, several or none."""
    values: list[Any] = value if isinstance(value, list) else [value]
    return {id_ for id_ in values if isinstance(id_, int) and not isinstance(id_, bool)}


class PromptFormat:
    """A language model's prompt format and tokens. Base of `LanguageModel` and `TokenizerOnly`."""

    __slots__ = ()
    tokenizer: Any
    """A `PreTrainedTokenizerBase`."""
    weights: Weights

    @property
    def settings(self) -> Any:
        """Its `PreTrainedConfig`."""
        raise NotImplementedError

    @property
    def context(self) -> int:
        """Tokens it can attend to."""
        return int(self.settings.get_text_config().max_position_embeddings)

    @property
    def image_tokens(self) -> int:
        """Tokens that its vision tower makes of an image; 0 if it has none."""
        has_vision = getattr(self.settings, "vision_config", None) is not None
        return int(self.settings.mm_tokens_per_image) if has_vision else 0

    @property
    def pad_id(self) -> int:
        """The padding token; always masked."""
        return int(self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0)

    @property
    def end_id(self) -> int:
        """The token that ends an answer in training: <end_of_turn> in a chat, <eos> otherwise."""
        if self.tokenizer.chat_template is None:
            return int(self.tokenizer.eos_token_id)
        return self._raw_ids(self._chat_answer("yes"))[-1]

    @property
    def end_ids(self) -> frozenset[int]:
        """All tokens that end an answer: a chat model may say <eos>, too, and what its generation config names."""
        named = _ids_in(self.generation_ends) & self.control_tokens.keys()  # a stranger may name an ordinary word
        return frozenset({self.end_id, int(self.tokenizer.eos_token_id), *named})

    @property
    def control_tokens(self) -> Mapping[int, str]:
        """The words that the tokenizer does not read as text, by their ids: <eos>, <start_of_turn>, …"""
        return self._control().words

    @property
    def generation_ends(self) -> Any:
        """`eos_token_id` of its generation config: an id, several, or None."""
        return None

    def prompt_ids(self, question: str, before: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Token ids from <bos> to where the answer starts.

        Args:
            before: earlier questions and answers of the same conversation.
        Raises:
            QuestionError: a text contains the language model's marker of an image, or another control token.
        """
        for text in (question, *(text for turn in before for text in turn)):
            self.require_plain(text)
        if self.tokenizer.chat_template is not None:
            ids = self._ids(self._with_image(self._chat(question, None, before)))
        else:
            prompts = [_PLAIN_PROMPT.format(question=text) for text in (*(earlier for earlier, _ in before), question)]
            if self.image_tokens:
                prompts[0] = self._with_image(f"{self._image_markers()[0]}{prompts[0]}")
            ids = [id_ for text, (_, answer) in zip(prompts, before, strict=False) for id_ in self._turn(text, answer)]
            ids += self._ids(prompts[-1])
        bos = self.tokenizer.bos_token_id
        if self.image_tokens and ids.count(self.settings.image_token_id) != self.image_tokens:
            raise QuestionError(f"{question!r} contains the image marker of {self.weights.source}: remove it")
        return ids if ids[:1] == [bos] else [bos, *ids]

    def shared(self, prompt: Sequence[int]) -> int:
        """How many first tokens of a prompt all questions about an image share: <bos>, or all up to the image."""
        return 1 + list(prompt).index(self.settings.eoi_token_id) if self.image_tokens else 1

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer and the token that ends it.

        Raises:
            QuestionError: it contains a control token.
        """
        self.require_plain(answer)
        if self.tokenizer.chat_template is None:
            return [*self._ids(f" {answer}"), int(self.tokenizer.eos_token_id)]
        return self._ids(self._chat_answer(answer))

    def decode(self, ids: list[int]) -> str:
        """The text of an answer's ids, up to the first end token and without special tokens."""
        ends = self.end_ids
        end = next((place for place, id_ in enumerate(ids) if id_ in ends), len(ids))
        with refusals_of_tokenizer(ConfigError, self.weights.folder):
            return str(self.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that the tokenizer has no token for: a word-level vocabulary is limited to its own words."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None or unknown not in self._ids(text):  # word by word, a long answer takes 30 times as long
            return []
        return [word for word in text.split() if unknown in self._ids(word)] or [text]

    def require_plain(self, text: str) -> None:
        """Refuse a text with a word that the tokenizer reads as a control token: it would end an answer, or a turn.

        Raises:
            QuestionError: names the words.
        """
        control = self._control()
        if not control.may_be_in(text):
            return
        if words := sorted({control.words[id_] for id_ in self._raw_ids(text) if id_ in control.words}):
            raise QuestionError(
                f"{text[:_SHOWN]!r} contains {', '.join(map(repr, words))}, which {self.weights.source} reads as a "
                "control token, not as text. Remove it, or write it in other words"
            )

    def _control(self) -> _ControlTokens:
        chat = "" if self.tokenizer.chat_template is None else self._chat_format().constant_text
        chat += template_of(self.tokenizer) or ""  # what it looks for in a text, such as </think>
        return _control_tokens(self.tokenizer, chat)

    def _ids(self, text: str) -> list[int]:
        ids = self._raw_ids(text)
        embeddings = int(self.settings.get_text_config().vocab_size)
        image = getattr(self.settings, "image_token_id", None)  # never looked up
        if max((id_ for id_ in ids if id_ != image), default=0) >= embeddings:
            raise ConfigError(
                f"the tokenizer in {self.weights.folder} is another model's: it gives token {max(ids)}, and the model "
                f"has {embeddings} embeddings. Put the tokenizer files beside the weights they came with"
            )
        return ids

    def _raw_ids(self, text: str) -> list[int]:
        with refusals_of_tokenizer(ConfigError, self.weights.folder):
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _chat_answer(self, answer: str) -> str:
        """An answer as the chat template writes it, up to the token that ends the turn."""
        return self._chat_format().answer(answer)

    def _turn(self, prompt: str, answer: str) -> list[int]:
        return [*self._ids(prompt), *self.answer_ids(answer)]

    def _chat(self, question: str, answer: str | None, before: Sequence[tuple[str, str]] = ()) -> str:
        return self._chat_format().text((*before, (question, answer)))

    def _chat_format(self) -> ChatFormat:
        marker = self._image_markers()[0] if self.image_tokens else None
        return chat_format(self.tokenizer, self.weights.source, marker)

    def _with_image(self, text: str) -> str:
        """The text with image tokens in place of its image marker, as Gemma3Processor puts them."""
        if not self.image_tokens:
            return text
        boi, image, eoi = self._image_markers()
        return text.replace(boi, f"\n\n{boi}{image * self.image_tokens}{eoi}\n\n", 1)

    def _image_markers(self) -> tuple[str, str, str]:
        boi, image, eoi = (getattr(self.tokenizer, f"{name}_token", None) for name in ("boi", "image", "eoi"))
        if not (boi and image and eoi):
            raise ConfigError(
                f"{self.weights.source} takes images, but its tokenizer names no boi_token, image_token and eoi_token. "
                "Use the tokenizer files that come with the model"
            )
        return boi, image, eoi


@dataclass(frozen=True, slots=True)
class TokenizerOnly(PromptFormat):
    """The prompt format of a language model whose weights are not loaded."""

    tokenizer: Any
    weights: Weights
    config: Any
    ends: Any = None
    """`generation_ends`, where the model was there to say."""

    @property
    def settings(self) -> Any:
        """Its `PreTrainedConfig`."""
        return self.config

    @property
    def generation_ends(self) -> Any:
        """`eos_token_id` of its generation config, where it is known."""
        return self.ends
