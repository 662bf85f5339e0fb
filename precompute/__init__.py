"""Stage one: images in, a store of rollouts out."""

from typing import TYPE_CHECKING

from ..pipeline._lazy import offer

if TYPE_CHECKING:
    from .job.config import PrecomputeConfig as PrecomputeConfig
    from .job.report import Report as Report
    from .job.run import run_precompute as run_precompute
    from .live.world import LiveWorld as LiveWorld
    from .worlds.registry import load_world as load_world

__getattr__, __dir__, __all__ = offer(  # pyright: ignore[reportUnsupportedDunderAll]
    __name__,
    {
        "LiveWorld": "live.world",
        "PrecomputeConfig": "job.config",
        "Report": "job.report",
        "load_world": "worlds.registry",
        "run_precompute": "job.run",
    },
)
