"""Stage two: a store and questions in, a trained reader and its answers out."""

from typing import TYPE_CHECKING

from ..pipeline._lazy import offer

if TYPE_CHECKING:
    from .config import TrainConfig as TrainConfig
    from .data.loader import LatentDataset as LatentDataset
    from .data.loader import Prefetcher as Prefetcher
    from .data.sampler import BatchSampler as BatchSampler
    from .evaluation.answer import ask as ask
    from .questions.record import Question as Question
    from .questions.record import read_questions as read_questions
    from .questions.record import resolve_keys as resolve_keys
    from .reader.model import TheWorld as TheWorld
    from .reader.tokens import TokenLayout as TokenLayout
    from .reader.tokens import WorldReader as WorldReader
    from .runs.folder import load_run as load_run
    from .training.train import train as train

__getattr__, __dir__, __all__ = offer(  # pyright: ignore[reportUnsupportedDunderAll]
    __name__,
    {
        "BatchOrder": "data.sampler",
        "LatentDataset": "data.loader",
        "Prefetcher": "data.loader",
        "Question": "questions.record",
        "TheWorld": "reader.model",
        "TokenLayout": "reader.tokens",
        "TrainConfig": "config",
        "WorldReader": "reader.tokens",
        "ask": "evaluation.answer",
        "load_run": "runs.folder",
        "read_questions": "questions.record",
        "resolve_keys": "questions.record",
        "train": "training.train",
    },
)
