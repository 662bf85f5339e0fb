"""All errors that are meant for the user. Each message says what happened, where, why, and what to do next.

TheWorldError                     exit code 2 unless stated
├── ConfigError (ValueError)          a flag, a config file or a combination of them is wrong
├── RecipeError (ValueError)          a recipe's fields contradict each other or another recipe
├── LatentShapeError (ValueError)     a tensor does not have the shape, dtype or range promised
├── ImageError (ValueError)           one input cannot be used; `reason` says why in one word
├── WorldModelError (RuntimeError)    a world model cannot be found, loaded or run
├── StoreError (RuntimeError)         the store as a whole cannot be used
│   ├── StoreNotFoundError (FileNotFoundError)   there is no store at this place; exit 10
│   ├── StoreLockedError                         another process holds its lock; exit 11
│   ├── StoreMismatchError                       it holds latents of another recipe
│   ├── MissingLatentError (KeyError)            it holds no latent for this key
│   └── DamagedShardError                        bytes on disk are not the bytes committed; exit 1
├── QuestionError (ValueError)        a questions file or one of its records is wrong
├── RunError (RuntimeError)           a run folder cannot be used
├── OutputError (RuntimeError)        a result cannot be written to stdout
└── Interrupted                       a signal ended the job; committed shards stay; exit 75
"""

from .failures import FailureReason


class TheWorldError(Exception):
    """Base class. The command line prints these errors without a traceback."""

    exit_code = 2

    def __str__(self) -> str:  # KeyError would print the repr of its message
        return str(self.args[0]) if self.args else type(self).__name__


class ConfigError(TheWorldError, ValueError):
    """A flag, a config file or a combination of them is wrong."""


class RecipeError(TheWorldError, ValueError):
    """A recipe's fields contradict each other, or another recipe."""


class LatentShapeError(TheWorldError, ValueError):
    """A tensor does not have the shape, dtype or range promised."""


class ImageError(TheWorldError, ValueError):
    """One image or video cannot be used.

    Attributes:
        reason: why, as in the list of failures (docs/inputs.md).
    """

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["ImageError"], tuple[FailureReason, str]]:
        return type(self), (self.reason, str(self))


class WorldModelError(TheWorldError, RuntimeError):
    """A world model cannot be found, loaded or run."""


class StoreError(TheWorldError, RuntimeError):
    """The store as a whole cannot be used."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no store at this place."""

    exit_code = 10


class StoreLockedError(StoreError):
    """Another process holds the lock of this store, run or study folder."""

    exit_code = 11


class StoreMismatchError(StoreError):
    """The store holds latents of another recipe."""


class MissingLatentError(StoreError, KeyError):
    """The store holds no latent for this key."""


class DamagedShardError(StoreError):
    """Bytes on disk are not the bytes that were committed."""

    exit_code = 1


class QuestionError(TheWorldError, ValueError):
    """A questions file, or one of its records, is wrong."""


class RunError(TheWorldError, RuntimeError):
    """A run folder cannot be used."""


class OutputError(TheWorldError, RuntimeError):
    """A result cannot be written to stdout. What the command made or changed on disk stays."""


class Interrupted(TheWorldError):  # noqa: N818 - the user asked for it
    """A signal ended the job. Committed shards stay; the same command resumes the job."""

    exit_code = 75
