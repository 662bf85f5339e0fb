"""Stage one: images in, a store of rollouts out."""

from typing import TYPE_CHECKING

from ..pipeline.lazy import offer

if TYPE_CHECKING:
    from .config import PrecomputeConfig as PrecomputeConfig
    from .job import run_precompute as run_precompute
    from .live import LiveWorld as LiveWorld
    from .registry import load_world as load_world
    from .report import Report as Report

__getattr__, __dir__, __all__ = offer(  # pyright: ignore[reportUnsupportedDunderAll]
    __name__,
    {
        "LiveWorld": "live",
        "PrecomputeConfig": "config",
        "Report": "report",
        "load_world": "registry",
        "run_precompute": "job",
    },
)
