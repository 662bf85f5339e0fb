"""What both stages use: recipes, latents, stores, files, errors; and the command line.

Its names are listed in `__init__.pyi` and load when they are first used. Nothing here imports Ray, diffusers or
transformers, and nothing but `cli` knows the two stages.
"""

from .errors import ConfigError as ConfigError
from .errors import DamagedShardError as DamagedShardError
from .errors import ImageError as ImageError
from .errors import Interrupted as Interrupted
from .errors import LatentShapeError as LatentShapeError
from .errors import MissingLatentError as MissingLatentError
from .errors import QuestionError as QuestionError
from .errors import RecipeError as RecipeError
from .errors import RunError as RunError
from .errors import StoreError as StoreError
from .errors import StoreLockedError as StoreLockedError
from .errors import StoreMismatchError as StoreMismatchError
from .errors import StoreNotFoundError as StoreNotFoundError
from .errors import TheWorldError as TheWorldError
from .errors import WorldModelError as WorldModelError
from .latents.keys import key_of_bytes as key_of_bytes
from .latents.keys import key_of_file as key_of_file
from .latents.recipe import Recipe as Recipe
from .latents.spec import LatentSpec as LatentSpec
from .latents.tensors import draw_noise as draw_noise
from .latents.tensors import draw_posterior as draw_posterior
from .latents.tensors import standardise as standardise
from .latents.world_model import Autoencoder as Autoencoder
from .latents.world_model import Encoder as Encoder
from .latents.world_model import WorldModel as WorldModel
from .store.folder import create_store as create_store
from .store.folder import find_store as find_store
from .store.folder import find_stores as find_stores
from .store.folder import open_store as open_store
from .store.latent_store import LatentStore as LatentStore
