"""The seconds in which a command loads torch, transformers and diffusers, made fewer."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def no_garbage() -> Generator[None]:
    """While big libraries load: what they make lives until the end, so nothing of it is looked through for garbage.

    Looking takes a sixth of the CPU time of `theworld ask`.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
