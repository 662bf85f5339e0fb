"""The markers that other tools leave in a text where an image stands. World tokens always come first, so all go.

<image>  <video>  <img>                                LLaVA, LLaMA-Factory, ms-swift, VILA
<image 1>  <image_1>  <image1>  <|image_1|>            MMMU, Phi-3; one number is one image, however often it comes
<|image|>  <start_of_image>  <|vision_start|>…         Llama 3.2, Gemma 3, Qwen2-VL
<img>path</img>  (<image>./</image>)  <ImageHere>      Qwen-VL, MiniCPM-V, MiniGPT-4 and InternLM-XComposer
[IMG]  <image-placeholder>  <image_placeholder>        Pixtral, LLaVA's server, DeepSeek-VL
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SHOWN = (
    r"\(<image>\./</image>\)",
    r"(?:Picture[ ]\d{1,4}:[ ]?)?<img>(?P<name>[^<>]{1,1024})</img>",
    r"<img><ImageHere></img>",
    r"<\|?(?:image|img|video)(?:[ _-]?(?P<number>\d{1,4}))?\|?>",
    r"<image[-_]placeholder>",
    r"<ImageHere>",
    r"<start_of_image>",
    r"<\|vision_start\|>",
    r"\[IMG\]",
)
_AROUND = (  # they stand around or behind one of the above, or in front of it
    r"</(?:image|img|video)>",
    r"<end_of_image>",
    r"<image_soft_token>",
    r"<\|(?:image|video|vision)_pad\|>",
    r"<\|vision_end\|>",
    r"<\|(?:begin|end)_of_(?:image|video)\|>",
    r"<IMG_CONTEXT>",
    r"<im_(?:start|end|patch)>",
    r"<fake_token_around_image>",
    r"\[IMG_(?:BREAK|END)\]",
)
# no blanks in the pattern: those around a marker would take time with their square
_MARKER = re.compile(f"(?P<shown>{'|'.join(_SHOWN)})|{'|'.join(_AROUND)}", re.IGNORECASE)
_NO_BLANK_BEFORE = frozenset(",.;:!?)")


class Markers:
    """Takes the markers out of the texts of one question, and counts them."""

    def __init__(self) -> None:
        self.removed = 0
        self.names: list[str] = []
        """Of the images that stand in the texts themselves, as Qwen-VL's do."""
        self._plain = 0
        self._numbers: set[int] = set()

    @property
    def images(self) -> int:
        """How many images the texts refer to; 0 where no marker says so."""
        return self._plain + len(self._numbers)

    def count(self, images: int) -> None:
        """Add images that something else than a text refers to: the parts of a message."""
        self._plain += images

    def take(self, text: str) -> str:
        """The text without markers and without the blanks around them: one blank stands for all of them."""
        if "<" not in text and "[" not in text:  # as most texts
            return text.strip()
        parts: list[str] = []
        end = 0
        for match in _MARKER.finditer(text):
            parts.append(text[end : match.start()])
            end = match.end()
            self.removed += 1
            if match["shown"] is not None and match["number"] is not None:
                self._numbers.add(int(match["number"]))
            elif match["shown"] is not None:
                self._plain += 1
                if match["name"] is not None:
                    self.names.append(match["name"].strip())
        parts.append(text[end:])
        return _joined(part.strip() for part in parts)


def _joined(parts: Iterable[str]) -> str:
    text: list[str] = []
    for part in parts:
        if part:
            text += [" "] * (bool(text) and part[0] not in _NO_BLANK_BEFORE) + [part]
    return "".join(text)
