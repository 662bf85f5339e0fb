"""How to speak to a language model: prompts and answers as token ids, in its own format.

Elsewhere: which model (lm_weights.py), loading it or its tokenizer (lm.py), images as it sees them (pictures.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...pipeline.errors import ConfigError, QuestionError
from .weights import Weights

_PLAIN_PROMPT = "question: {question} answer:"
"""For tokenizers without a chat template; the format the worldlet LM was trained on."""


class PromptFormat:
    """How to speak to a language model: its format, its tokens, how much of them it takes."""

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
        """Tokens of its own that it puts an image into; 0 where it sees none."""
        sees = getattr(self.settings, "vision_config", None) is not None
        return int(self.settings.mm_tokens_per_image) if sees else 0

    @property
    def pad_id(self) -> int:
        """The padding token; masked wherever it stands."""
        return int(self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0)

    @property
    def end_id(self) -> int:
        """The token that ends an answer: <end_of_turn> in a chat, <eos> otherwise."""
        return self.answer_ids("yes")[-1]

    def prompt_ids(self, question: str, before: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Token ids from <bos> to where the answer starts.

        Args:
            before: earlier questions and answers of the same conversation.
        Raises:
            QuestionError: the question spells the language model's own marker of an image.
        """
        if self.tokenizer.chat_template is not None:
            ids = self._ids(self._with_image(self._chat(question, None, before)))
        else:
            asked = [_PLAIN_PROMPT.format(question=one) for one in (*(earlier for earlier, _ in before), question)]
            asked[0] = self._with_image(f"{self.tokenizer.boi_token}{asked[0]}" if self.image_tokens else asked[0])
            ids = [id_ for text, (_, said) in zip(asked, before, strict=False) for id_ in self._turn(text, said)]
            ids += self._ids(asked[-1])
        bos = self.tokenizer.bos_token_id
        if self.image_tokens and ids.count(self.settings.image_token_id) != self.image_tokens:
            raise QuestionError(f"{question!r} holds the image marker of {self.weights.source}: take it out")
        return ids if ids[:1] == [bos] else [bos, *ids]

    def shared(self, prompt: Sequence[int]) -> int:
        """How many of a prompt's first tokens all questions about its image share: <bos>, or all up to the image."""
        return 1 + list(prompt).index(self.settings.eoi_token_id) if self.image_tokens else 1

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer and the token that ends it."""
        if self.tokenizer.chat_template is None:
            return [*self._ids(f" {answer}"), int(self.tokenizer.eos_token_id)]
        prompt, whole = self._chat("?", None), self._chat("?", answer)
        if not whole.startswith(prompt):
            raise ConfigError(
                f"the chat template of {self.weights.source} does not put an answer behind its generation prompt, "
                "so answers cannot be told from prompts. Use a model with Gemma's template, or one without a template"
            )
        return self._ids(whole[len(prompt) :].rstrip())

    def decode(self, ids: list[int]) -> str:
        """The answer these ids spell, without special tokens and what follows the end."""
        end = ids.index(self.end_id) if self.end_id in ids else len(ids)
        return str(self.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` the tokenizer has no token for; a word-level vocabulary knows only what it was made with."""
        unknown = self.tokenizer.unk_token_id
        return [word for word in text.split() if unknown is not None and unknown in self._ids(word)]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _turn(self, prompt: str, answer: str) -> list[int]:
        return [*self._ids(prompt), *self.answer_ids(answer)]

    def _chat(self, question: str, answer: str | None, before: Sequence[tuple[str, str]] = ()) -> str:
        turns: list[dict[str, Any]] = []
        for asked, said in (*before, (question, answer)):
            turns.append({"role": "user", "content": asked})
            if said is not None:
                turns.append({"role": "assistant", "content": said})
        if self.image_tokens:
            turns[0]["content"] = [{"type": "image"}, {"type": "text", "text": turns[0]["content"]}]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None))

    def _with_image(self, text: str) -> str:
        """The text with the image's own tokens where its marker stands, as Gemma3Processor puts them there."""
        if not self.image_tokens:
            return text
        boi, image, eoi = (getattr(self.tokenizer, f"{name}_token", None) for name in ("boi", "image", "eoi"))
        if not (boi and image and eoi and boi in text):
            raise ConfigError(
                f"{self.weights.source} sees images, but its tokenizer names no boi_token, image_token and eoi_token, "
                "or its chat template leaves images out. Use the tokenizer files that come with the model"
            )
        return text.replace(boi, f"\n\n{boi}{image * self.image_tokens}{eoi}\n\n", 1)


@dataclass(frozen=True, slots=True)
class TokenizerOnly(PromptFormat):
    """How to speak to a language model whose weights are not loaded."""

    tokenizer: Any
    weights: Weights
    config: Any

    @property
    def settings(self) -> Any:
        """Its `PreTrainedConfig`."""
        return self.config
