"""Content addresses: which input a latent belongs to, and the noise that belongs to it.

A key is the first 32 hex digits of the SHA-256 of the image file's bytes (`sha256sum` shows the same digits); where
an input has a prompt of its own, of that hash and the prompt; where a clip or picture is taken from a later moment of a
video, of that hash and the moment. Path, time and position never enter: a moved file keeps its latent, an edited one
gets a new key.
"""

import hashlib
import re
from pathlib import Path

from ..files.hashing import digest_of_bytes, digest_of_file

KEY_DIGITS = 32
"""128 bits: chance collisions stay below 1e-20 for a billion images."""

_KEY = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")


def key_of_bytes(content: bytes) -> str:
    """The key of an image with this content and no prompt of its own."""
    return key_of_sample(content, None)


def key_of_sample(content: bytes, prompt: str | None, start_s: float | None = None) -> str:
    """The key of an input: its content, its own prompt where it has one, and where in a video it begins.

    Args:
        start_s: seconds from the video's first frame on, which count to the millisecond. 0 and None are the same input:
            the video from its start on.
    """
    return key_of_digest(digest_of_bytes(content), prompt, start_s)


def key_of_digest(digest: bytes, prompt: str | None, start_s: float | None = None) -> str:
    """`key_of_sample` of content with this digest."""
    if start_s is not None and (start_ms := round(1000 * start_s)):
        digest = hashlib.sha256(b"theworld clip 1\0" + digest + str(start_ms).encode()).digest()
    if prompt is not None:
        digest = hashlib.sha256(b"theworld prompt 1\0" + digest + prompt.encode()).digest()
    return digest.hex()[:KEY_DIGITS]


def key_of_file(path: Path | str, prompt: str | None = None, start_s: float | None = None) -> str:
    """The key of a file, read in blocks, with the rest of `key_of_sample`.

    Raises:
        OSError: the file cannot be read.
    """
    return key_of_digest(digest_of_file(Path(path)), prompt, start_s)


def is_key(value: object) -> bool:
    """Whether `value` has the form of a key."""
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def noise_seed(seed: int, key: str, draw: int = 0) -> int:
    """Seed of one sample's noise: a function of recipe seed, key and draw alone.

    Batch, order, worker and retry do not enter, so they cannot change the noise.

    Returns:
        An integer in [0, 2**63), what `torch.Generator.manual_seed` takes.
    """
    digest = hashlib.sha256(f"theworld noise 1:{seed}:{key}:{draw}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
