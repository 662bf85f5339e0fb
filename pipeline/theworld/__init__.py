"""See what happens next: roll images forward once, keep the latents, and train a language model to read them.

The shortest way in; `theworld.pipeline`, `theworld.precompute` and `theworld.train` have the rest. Nothing loads
before it is used.
"""

from importlib import import_module
from typing import Any

_HOMES = {"TheWorld": "theworld.model", "ask": "theworld.train", "open_store": "theworld.pipeline"}
__all__ = ["TheWorld", "__version__", "ask", "open_store", "train"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata  # itself takes a twentieth of a second

        return metadata.version("theworld")
    if name == "train":
        return import_module("theworld.train")  # a package that can be called: theworld.train(config)
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'theworld' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
