"""What both stages use: recipes, latents, stores, files, errors; and the command line.

Its names are listed in `__init__.pyi` and load when they are first used. Nothing here imports Ray, diffusers or
transformers, and nothing but `cli` knows the two stages.
"""

from lazy_loader import attach_stub  # pyright: ignore[reportMissingTypeStubs]

__getattr__, __dir__, __all__ = attach_stub(  # pyright: ignore[reportUnknownVariableType]
    __name__, __file__
)
