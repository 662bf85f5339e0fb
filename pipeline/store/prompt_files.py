"""The embeddings of prompts that a store keeps: of the recipe's own, and of each sample's where they have some.

prompt.safetensors      of the recipe's prompt, and of what its rollouts are steered away from
prompts/<32 digits of the prompt's SHA-256>.safetensors      of a sample's prompt
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from safetensors import SafetensorError, deserialize  # pyright: ignore[reportUnknownVariableType]

from ..files.places.place import Place
from .folder import PROMPT, PROMPTS

MAX_EMBEDDING_BYTES = 2**30
"""Of a file of them. 512 rows of 4,096 numbers are 8 MiB; keys and values of 64 layers for 512 tokens 128 MiB."""
_REQUESTS = 8
"""Files copied at once to or from a bucket."""


def prompt_name(prompt: str) -> str:
    """The file in prompts/ that holds the embedding of a sample's prompt."""
    return f"{hashlib.sha256(prompt.encode()).hexdigest()[:32]}.safetensors"


def copy_prompts(source: Place, target: Place, prompts: Iterable[str] | None) -> list[str]:
    """Copy the embeddings that a store does not have yet, as they are.

    Args:
        prompts: those of samples to copy; None is all. That of the recipe always comes along.
    Returns:
        One message for each file that is none of embeddings, and was not copied.
    Raises:
        StoreError: the target cannot be written, or a bucket does not answer.
    """
    of_source, of_target = set(source.names(PROMPTS)), set(target.names(PROMPTS))
    wanted = of_source if prompts is None else of_source & set(map(prompt_name, prompts))
    names = [f"{PROMPTS}/{name}" for name in sorted(wanted - of_target) if name.endswith(".safetensors")]
    if PROMPT in source.names("") and PROMPT not in target.names(""):
        names.insert(0, PROMPT)
    with ThreadPoolExecutor(1 if source.is_local and target.is_local else _REQUESTS) as pool:
        problems = pool.map(partial(_copy, source, target), names)
        return [problem for problem in problems if problem is not None]


def _copy(source: Place, target: Place, name: str) -> str | None:
    try:
        content = source.read(name, MAX_EMBEDDING_BYTES)
        deserialize(content)
    except (OSError, SafetensorError, ValueError) as error:
        return f"{source.location(name)}: it is no file of embeddings ({error}), so it was not copied"
    with target.writing():
        target.create(name, content)
    return None
