"""World models: the Cosmos and Wan engines, their autoencoders and prompts, and the kit for adding a family.

Its names are what a plugin package needs; they are listed in `__init__.pyi`. It knows pixels and latents, and nothing
of inputs, jobs or stores.
"""

from .family import Card as Card
from .family import HasAutoencoder as HasAutoencoder
from .family import TextEncoder as TextEncoder
from .family import WorldFamily as WorldFamily
from .family import latent_spec_of as latent_spec_of
from .family import mismatched as mismatched
from .memory import Memory as Memory
from .memory import PlansMemory as PlansMemory
