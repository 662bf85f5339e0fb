"""Stage two: a store and questions in, a trained reader and its answers out.

Its names are listed in `__init__.pyi` and load when they are first used. It knows `theworld.pipeline` and never
`theworld.precompute`: the two stages meet in the store.
"""

import sys
from types import ModuleType
from typing import Any

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)


class _Package(ModuleType):
    """This package, which can be called: `theworld.train(config)` is `theworld.train.train(config)`."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self.train(*args, **settings)


sys.modules[__name__].__class__ = _Package
