"""Stage one: images and videos in, a store of latents out.

Its names are listed in `__init__.pyi` and load when they are first used. It knows `theworld.pipeline` and never
`theworld.train`: the two stages meet in the store.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
