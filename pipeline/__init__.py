"""The contract both stages share: latents, recipes, keys, the store, and the command line."""

from typing import TYPE_CHECKING

from .lazy import offer

if TYPE_CHECKING:
    from .errors import TheWorldError as TheWorldError
    from .keys import key_of_bytes as key_of_bytes
    from .keys import key_of_file as key_of_file
    from .latent_spec import LatentSpec as LatentSpec
    from .latent_store import LatentStore as LatentStore
    from .recipe import Recipe as Recipe
    from .store import create_store as create_store
    from .store import find_store as find_store
    from .store import find_stores as find_stores
    from .store import open_store as open_store
    from .world import WorldModel as WorldModel

__getattr__, __dir__, __all__ = offer(  # pyright: ignore[reportUnsupportedDunderAll]
    __name__,
    {
        "LatentSpec": "latent_spec",
        "LatentStore": "latent_store",
        "Recipe": "recipe",
        "TheWorldError": "errors",
        "WorldModel": "world",
        "create_store": "store",
        "find_store": "store",
        "find_stores": "store",
        "key_of_bytes": "keys",
        "key_of_file": "keys",
        "open_store": "store",
    },
)
