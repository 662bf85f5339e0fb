"""Stage two: a store and questions in, a trained reader and its answers out."""

from typing import TYPE_CHECKING

from ..pipeline.lazy import offer

if TYPE_CHECKING:
    from .answer import ask as ask
    from .batch_order import BatchOrder as BatchOrder
    from .checkpoint import load_run as load_run
    from .config import TrainConfig as TrainConfig
    from .loader import LatentDataset as LatentDataset
    from .loader import Prefetcher as Prefetcher
    from .model import TheWorld as TheWorld
    from .questions import Question as Question
    from .questions import read_questions as read_questions
    from .questions import resolve_keys as resolve_keys
    from .tokens import TokenLayout as TokenLayout
    from .tokens import WorldReader as WorldReader
    from .trainer import train as train

__getattr__, __dir__, __all__ = offer(  # pyright: ignore[reportUnsupportedDunderAll]
    __name__,
    {
        "BatchOrder": "batch_order",
        "LatentDataset": "loader",
        "Prefetcher": "loader",
        "Question": "questions",
        "TheWorld": "model",
        "TokenLayout": "tokens",
        "TrainConfig": "config",
        "WorldReader": "tokens",
        "ask": "answer",
        "load_run": "checkpoint",
        "read_questions": "questions",
        "resolve_keys": "questions",
        "train": "trainer",
    },
)
