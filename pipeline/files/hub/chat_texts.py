"""What a stranger's chat template writes: rendered by another process, within bounds.

A chat template is a Jinja program of whoever made the model. Its sandbox keeps it from files, but not from running
forever or from taking all memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

_TEMPLATE_BYTES = 2**20
_WALL_S = 20.0
_LIMITS = {"memory_bytes": 2**30, "cpu_s": 5, "answer_bytes": 2**20}
"""Gemma's templates take 0.1 s, nearly all of it to start Python, and their texts are 17 KB."""


def template_of(tokenizer: Any) -> str | None:
    """The chat template of a tokenizer; None where it has none that is a text.

    Args:
        tokenizer: a `PreTrainedTokenizerBase`.
    """
    template: object = tokenizer.chat_template
    if isinstance(template, dict):  # templates by name; transformers takes this one
        template = cast(dict[str, object], template).get("default")
    return template if isinstance(template, str) else None


def write_chats(
    template: str, names: Mapping[str, Any], conversations: Sequence[tuple[Sequence[Mapping[str, Any]], bool]]
) -> list[str] | str:
    """The text of each conversation, or what the template does instead, to be put behind `the chat template of …`.

    Args:
        names: what the template may use beside the messages: special tokens, settings.
        conversations: the messages of each, and whether the model's turn is begun after them.
    """
    request = {
        "template": template,
        "tokens": dict(names),
        "conversations": [[list(messages), begun] for messages, begun in conversations],
        "limits": _LIMITS,
    }
    size = len(template) + sum(len(value) for value in names.values() if isinstance(value, str))
    if size > _TEMPLATE_BYTES:
        return f"is {size} characters long, its special tokens included; {_TEMPLATE_BYTES} is the most"
    jinja2 = find_spec("jinja2")  # -I leaves out PYTHONPATH, where it may be
    folder = str(Path(jinja2.origin).parents[1]) if jinja2 and jinja2.origin else ""
    command = [sys.executable, "-I", str(Path(__file__).with_name("chat_renderer.py")), folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        ending = threading.Timer(_WALL_S, child.kill)
        ending.start()
        try:
            with suppress(BrokenPipeError):  # it has ended, and its exit code says how
                child.stdin.write(json.dumps(request).encode())
            with suppress(BrokenPipeError):
                child.stdin.close()
            answer = child.stdout.read(_LIMITS["answer_bytes"] + 1)
            if len(answer) <= _LIMITS["answer_bytes"]:
                child.wait()
        finally:
            ending.cancel()
            child.kill()
    return _checked(answer, child.returncode, len(conversations))


def _checked(answer: bytes, code: int, count: int) -> list[str] | str:
    """What the process that rendered answers, of which nothing is taken on trust."""
    if len(answer) > _LIMITS["answer_bytes"]:
        return f"writes more than {_LIMITS['answer_bytes']} bytes"
    if not answer:
        return (
            f"does not end within {_LIMITS['cpu_s']} s of computing and {_WALL_S:g} s in all, or ends the process that "
            f"renders it (exit code {code})"
        )
    try:
        content = json.loads(answer)
        texts = content.get("texts")
        if texts is None:
            return str(content["failure"])[:300]
    except (ValueError, AttributeError, KeyError, RecursionError):
        texts = None
    templates = cast(list[object], texts) if isinstance(texts, list) else []
    whole = [text for text in templates if isinstance(text, str)]
    return whole if len(whole) == len(templates) == count else "makes the process that renders it answer nonsense"
