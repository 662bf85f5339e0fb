"""Why one input has no latent: the words of a store's ledger, one sentence each."""

from enum import StrEnum


class FailureReason(StrEnum):
    """One word for why one input has no latent. The words stand in ledger files, so they never change.

    Attributes:
        explanation: one sentence on it, the row of docs/inputs.md.
    """

    explanation: str

    def __new__(cls, word: str, explanation: str) -> "FailureReason":
        member = str.__new__(cls, word)
        member._value_ = word
        member.explanation = explanation
        return member

    ROW = "row", "A row of a list is not JSON, lacks the column, or has an empty path or prompt."
    MISSING = "missing", "There is no such file, or the file or its folder cannot be read."
    NOT_A_FILE = "not_a_file", "It is a pipe, a device or a folder, or a link leads a row out of its list's folder."
    EMPTY = "empty", "The file, tar member or table cell has no bytes."
    TOO_LARGE = "too_large", "It is over 64 MiB or 64 megapixels; of a video, over 1 GiB or 8K frames."
    TAR = "tar", "The tar is compressed, damaged, or goes on behind its end; the members before are used."
    TRUNCATED = "truncated", "The tar ends within a member, or in a megabyte of zeros; the members before are used."
    TABLE = "table", "The Parquet or Arrow file is damaged."
    FORMAT = "format", "It is in no format or video codec that is read, or a video where images are wanted."
    ANIMATED = "animated", "The image file has several frames or pages."
    SHORT = "short", "The video, or the part of it that a row names, is shorter than the recipe takes."
    DECODE = "decode", "The image or video is damaged."
    CRASH = "crash", "Decoding ended its process."
    TIMEOUT = "timeout", "Decoding took more than a minute and two seconds a frame of CPU time."
    MEMORY = "memory", "Decoding took more memory than 2 GiB, twice the largest file and the frames."
    ERROR = "error", "A mistake of theworld while decoding: please report it."
    CHANGED = "changed", "The content is no longer what it was when the job began or the store was made."
    PROMPT = "prompt", "Its own prompt is too long for the text encoder, or the guardrail finds it unsafe."
    ROLLOUT = "rollout", "Rolling it out failed three times."
    ENCODE = "encode", "Encoding it failed three times."
    LATENT = "latent", "Its latent is not finite, or too large for the stored dtype."
    OOM = "oom", "It does not fit in memory, not even in a batch of one."
