"""What a chat template writes around the turns of a conversation, read once, so that no question runs it.

    head question reply                                          a prompt: the answer comes next
    head question between answer tail                            a question with its answer
    head question earlier answer after question reply            a prompt with an earlier turn

Templates of models that think first (Qwen 3, SmolLM3, Gemma-4) are asked not to. They then write an empty thought
before an answer, some of them in prompts alone, or before the last answer alone.

A chat template is a Jinja program of whoever made the model. Its sandbox keeps it from files, but not from running
forever or from taking all memory. So another process renders it, with bounds (`pipeline/files/hub/chat_texts.py`), for
conversations of our own; here those pieces are read from the texts, and held against all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

from ...pipeline.errors import ConfigError
from ...pipeline.files.hub.chat_texts import template_of, write_chats

Turn = tuple[str, str | None]
"""A question and its answer; None in the last turn of a prompt."""

_SHORT = [("Wo4?", "Zk."), ("Hm7?", "Yx."), ("Lv9?", "Qp.")]
_LONG = [
    (f"{first} <b>\"Is\" 'it' & {{it}} {{{{%}}}}</b> #{number}?\n\n\tüß 左 \\n A  b" * 4, f"{last}; <i>nò</i>\n it" * 9)
    for number, (first, last) in enumerate([("Rt", "jF"), ("uN", "Gw"), ("Ce", "oB")])
]
"""Two sets of texts that share nothing but what a filter could change: case, blanks, quotes, markup, length."""
_SETTINGS = {"enable_thinking": False}
"""Beside the messages; other templates have no use for it."""
_BLANKS = (" ", "\n", "\t", "\r\n", "\x0b", "\x1c", "\u00a0", "\u3000")
_MOST_WORDS = 64


def _strip_newlines(text: str) -> str:
    return text.lstrip("\n")


_STRIPS: tuple[Callable[[str], str], ...] = (str, str.strip, _strip_newlines)
"""What templates do with the blanks around a text."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The constant pieces of a chat template; the head of this file shows their places."""

    head: str
    """With the marker of the image, where the first turn has one."""
    reply: str
    between: str
    """Starts with `reply`, or `reply` with it: then a thought follows it in prompts alone."""
    earlier: str
    """`between`, where another question follows."""
    after: str
    tail: str
    strip_first: Callable[[str], str]
    """Leaves out blanks around the first question; likewise for the later ones and the answers."""
    strip_later: Callable[[str], str]
    strip_answer: Callable[[str], str]
    strip_earlier: Callable[[str], str]

    @property
    def constant_text(self) -> str:
        """All that the template writes itself."""
        return "\n".join((self.head, self.reply, self.between, self.earlier, self.after, self.tail))

    def answer(self, answer: str) -> str:
        """What follows a prompt: an answer, up to the token that ends it."""
        return f"{self.between[len(self.reply) :]}{self.strip_answer(answer)}{self.tail}".rstrip()

    def text(self, turns: Sequence[Turn]) -> str:
        """A conversation as the template writes it; a prompt if the last turn has no answer."""
        parts: list[str] = []
        for number, (question, answer) in enumerate(turns):
            parts.append(self.after if number else self.head)
            parts.append((self.strip_later if number else self.strip_first)(question))
            if answer is not None and number + 1 < len(turns):
                parts += [self.earlier, self.strip_earlier(answer)]
            elif answer is not None:
                parts += [self.between, self.strip_answer(answer)]
        parts.append(self.reply if turns[-1][1] is None else self.tail)
        return "".join(parts)


def chat_format(tokenizer: Any, source: str, image_marker: str | None) -> ChatFormat:
    """How a tokenizer's chat template writes conversations.

    Args:
        tokenizer: a `PreTrainedTokenizerBase` with a chat template.
        source: the model's name in error messages.
        image_marker: what stands for the image, for a model that looks at one in the first turn.
    Raises:
        ConfigError: the template cannot be rendered within the limits, or does more than put constant text around
            questions and answers.
    """
    template = template_of(tokenizer)
    if template is None:
        result: ChatFormat | str = "is no text, or templates by name without one named default"
    else:
        names = tuple(sorted(tokenizer.special_tokens_map.items()))
        result = _read(template, names, image_marker, _added_words(tokenizer, template))
    if isinstance(result, str):
        raise ConfigError(
            f"the chat template of {source} {result}. Use Gemma's template, or remove this one from the tokenizer's "
            "files (chat_template.jinja, or chat_template in tokenizer_config.json)"
        )
    return result


@lru_cache(maxsize=4)  # thousands of added tokens, asked for with each question
def _added_words(tokenizer: Any, template: str) -> frozenset[str]:
    """Words of a template that are tokens of their own: `PromptFormat.control_tokens`, which no text contains."""
    words = map(str, tokenizer.added_tokens_decoder.values())
    return frozenset(word for word in words if word.strip() and word in template)


@lru_cache(maxsize=16)
def _read(
    template: str, tokens: tuple[tuple[str, str], ...], image_marker: str | None, never: frozenset[str]
) -> ChatFormat | str:
    """The format, or what about the template cannot be used: it is not tried again for the next question.

    Args:
        never: words that no text contains.
    """
    tried = list(_conversations(template, never))
    requests = [(_messages(turns, image=image_marker is not None), turns[-1][1] is None) for turns in tried]
    rendered = write_chats(template, {**dict(tokens), **_SETTINGS}, requests)
    if isinstance(rendered, str):
        return rendered
    pieces = _pieces(rendered, image_marker)
    if isinstance(pieces, str):
        return pieces
    for strips in product(_STRIPS, repeat=4):
        chat_format = ChatFormat(*pieces, *strips)
        if all(chat_format.text(turns) == text for turns, text in zip(tried, rendered, strict=True)):
            return chat_format
    return (
        "writes more than constant text around questions and answers: it changes their text, or what it adds depends "
        "on the text or on the number of turns"
    )


def _conversations(template: str, never: frozenset[str]) -> Iterator[Sequence[Turn]]:
    for texts in (_SHORT, _LONG):
        question, answer = texts[0]
        yield [(question, None)]
        yield [(question, answer)]
        yield [*texts[:2], (texts[2][0], None)]
        yield texts
    for blank in _BLANKS:
        yield [(f"{blank}{question}{blank}", f"{blank}{answer}{blank}") for question, answer in _SHORT]
    # A text that a template looks for in a question stands in the template. So its own words are asked too.
    words = {text for _, text in re.findall(r"(?=(['\"])(.{1,80}?)\1)", template, re.DOTALL) if text.strip()}
    words = {text for text in words if not any(word in text for word in never)}
    chosen_words = sorted(words, key=lambda text: (len(text), text))[:_MOST_WORDS]
    for text in (" ".join(chosen_words), *chosen_words):
        yield [(text, text), (text, None)]


def _messages(turns: Sequence[Turn], *, image: bool) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    if image:
        messages[0]["content"] = [{"type": "image"}, {"type": "text", "text": messages[0]["content"]}]
    return messages


def _pieces(rendered: Sequence[str], image_marker: str | None) -> tuple[str, str, str, str, str, str] | str:
    """Head, reply, between, earlier, after and tail, from the first three texts; or what is wrong with them."""
    prompt, answered, third = rendered[:3]
    (question, answer), (later, _), _ = _SHORT
    if image_marker is not None and image_marker not in prompt:
        return f"leaves images out: it does not write the tokenizer's marker of one, {image_marker!r}"
    if prompt.count(question) != 1 or answered.count(answer) != 1:
        what = "answer" if prompt.count(question) == 1 else "question"
        return f"does not write the {what} unchanged and exactly once"
    head, reply = prompt.split(question)
    rest, tail = answered.split(answer)
    between = rest[len(head) + len(question) :]
    if not between.startswith(reply) and not reply.startswith(between):
        return "does not put an answer behind its generation prompt, so answers cannot be told from prompts"
    earlier = third.partition(question)[2].partition(answer)[0]
    after = third.partition(answer)[2].partition(later)[0]
    try:
        "".join(rendered).encode()
    except UnicodeEncodeError:
        return "writes half a character (a lone surrogate), which no tokenizer can read"
    return head, reply, between, earlier, after, tail
