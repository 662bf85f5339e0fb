"""Parse conversations: LLaVA's and ShareGPT's turns of `from` and `value`, and messages of `role` and `content`.

{"from": "human", "value": "<image>\\nwhere?"}                                        LLaVA, LLaMA-Factory, VILA
{"role": "user", "content": "<image>where?"}                                         ms-swift, LLaMA-Factory
{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "where?"}]}   TRL, transformers, OpenAI
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from ...pipeline.files import limits
from .markers import Markers
from .turns import Turn
from .values.text import WrongValue, is_absent, text_of

_ASKS = frozenset({"human", "user"})
_ANSWERS = frozenset({"gpt", "assistant", "model", "bot", "chatgpt"})
_SYSTEM = frozenset({"system", "developer"})
_IMAGE_PARTS = ("image", "image_url", "input_image", "video", "video_url", "input_video")
_TEXT_PARTS = ("text", "input_text", "output_text")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Questions and answers in turn, without the markers of the image: world tokens always stand in front."""

    turns: tuple[Turn, ...]
    images: tuple[Any, ...]
    """What the messages themselves name: paths, URLs, bytes."""
    asked: str = ""
    """The last question, where it has no answer yet."""


def read_conversation(value: Any, system: Any, markers: Markers, *, is_open: bool = False) -> Conversation:
    """The turns of a conversation, and the images in it.

    Args:
        value: a list of turns, or JSON of one.
        system: what stands in front of it, where no turn of the conversation does.
        markers: counts the markers of images.
        is_open: whether it ends with a question, which the last answer is to be found for.
    Raises:
        WrongValue: it is no list of turns, has too many, or question and answer do not alternate.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list) or not value:
        raise WrongValue("conversations is no list of turns")
    given = cast(list[Any], value)
    if len(given) > 2 * limits.MAX_TURNS + 1:
        raise WrongValue(f"conversations has {len(given):,} turns; the limit is {limits.MAX_TURNS} answers")
    images: list[Any] = []
    messages = [_message(turn, markers, images) for turn in given]
    # Gemma has no such role; its template puts the text in front of the first question
    opening = markers.take(text_of(system)) if not is_absent(system) else ""
    if messages[0][0] in _SYSTEM:
        opening = messages.pop(0)[1]
    prompts, answered = messages[0::2], messages[1::2]
    in_turn = all(role in _ASKS for role, _ in prompts) and all(role in _ANSWERS for role, _ in answered)
    if not in_turn or len(prompts) != len(answered) + is_open or not prompts:
        order = "question and answer must alternate" + (", and the last is a question" if is_open else "")
        raise WrongValue(f"turns of {', '.join(role for role, _ in messages) or 'nobody'}: {order}")
    for place, (_, text) in enumerate(messages):
        if is_absent(text):
            raise WrongValue(f"turn {place // 2 + 1} has an empty {'answer' if place % 2 else 'question'}")
    try:
        "".join([opening, *(text for _, text in messages)]).encode()
    except UnicodeEncodeError as error:
        raise WrongValue(f"its turns are not Unicode text ({error.reason})") from error
    questions, answers = [text for _, text in prompts], [text for _, text in answered]
    if opening:
        questions[0] = f"{opening}\n\n{questions[0]}"
    turns = tuple(zip(questions, answers, strict=False))
    return Conversation(turns, tuple(images), questions[-1] if is_open else "")


def _message(turn: Any, markers: Markers, images: list[Any]) -> tuple[str, str]:
    """Role and text of a turn; what its parts name is added to the images."""
    fields = cast(Mapping[str, Any], turn if isinstance(turn, dict) else {})
    role, content = fields.get("from", fields.get("role")), fields.get("value", fields.get("content"))
    if isinstance(content, list):
        content = "\n".join(filter(None, (_part(part, markers, images) for part in cast(list[Any], content))))
    if not isinstance(role, str) or not isinstance(content, str):
        raise WrongValue('a turn is not {"from": …, "value": text}, nor {"role": …, "content": text or parts}')
    return role.strip().lower(), markers.take(content)


def _part(part: Any, markers: Markers, images: list[Any]) -> str:
    """The text of a part of a message; of an image, none."""
    if isinstance(part, str):
        return part
    fields = cast(Mapping[str, Any], part if isinstance(part, dict) else {})
    kind = fields.get("type")
    names = [
        fields[name]
        for name in (*_IMAGE_PARTS, "path", "url", "bytes", "data")
        if not is_absent(fields.get(name)) and (kind in _IMAGE_PARTS or kind is None)
    ]
    if kind in _IMAGE_PARTS or (kind is None and names):
        images.extend(names[:1])
        markers.count(not names)
        return ""
    text = fields.get("text")
    if (kind is None or kind in _TEXT_PARTS) and (isinstance(text, str) or (kind is None and text is None)):
        return text or ""
    if kind not in (None, *_TEXT_PARTS):
        raise WrongValue(f"a part of a message is of type {str(kind)[:60]!r}, neither a text nor an image")
    raise WrongValue("a part of a message holds no text")
