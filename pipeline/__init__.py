"""The contract both stages share: latents, recipes, keys, the store, and the command line."""

from typing import TYPE_CHECKING

from ._lazy import offer

if TYPE_CHECKING:
    from .errors import TheWorldError as TheWorldError
    from .latents.keys import key_of_bytes as key_of_bytes
    from .latents.keys import key_of_file as key_of_file
    from .latents.recipe import Recipe as Recipe
    from .latents.spec import LatentSpec as LatentSpec
    from .latents.world_model import WorldModel as WorldModel
    from .store.folder import create_store as create_store
    from .store.folder import find_store as find_store
    from .store.folder import find_stores as find_stores
    from .store.folder import open_store as open_store
    from .store.latent_store import LatentStore as LatentStore

__getattr__, __dir__, __all__ = offer(  # pyright: ignore[reportUnsupportedDunderAll]
    __name__,
    {
        "LatentSpec": "latents.spec",
        "LatentStore": "store.latent_store",
        "Recipe": "latents.recipe",
        "TheWorldError": "errors",
        "WorldModel": "latents.world_model",
        "create_store": "store.folder",
        "find_store": "store.folder",
        "find_stores": "store.folder",
        "key_of_bytes": "latents.keys",
        "key_of_file": "latents.keys",
        "open_store": "store.folder",
    },
)
