"""World models: the Cosmos, Wan and V-JEPA engines, their autoencoders and prompts, and the kit for adding a family.

Its names are what a plugin package needs; they are listed in `__init__.pyi`. It knows pixels and latents, and nothing
of inputs, jobs or stores.
"""

from .arithmetic import Operations as Operations
from .blocks import Blocks as Blocks
from .blocks import HasBlocks as HasBlocks
from .family import Card as Card
from .family import HasArithmetic as HasArithmetic
from .family import HasAutoencoder as HasAutoencoder
from .family import HasCards as HasCards
from .family import HasIndexSettings as HasIndexSettings
from .family import HasLimits as HasLimits
from .family import HasPatches as HasPatches
from .family import HasRest as HasRest
from .family import HasSettings as HasSettings
from .family import KeepsState as KeepsState
from .family import Settings as Settings
from .family import TextEncoder as TextEncoder
from .family import TextForm as TextForm
from .family import WorldFamily as WorldFamily
from .family import mismatched as mismatched
from .memory import HasMemoryEstimate as HasMemoryEstimate
from .memory import Memory as Memory
from .network.offloading import offload_blocks as offload_blocks
from .text_embeddings import FollowsPrompts as FollowsPrompts
from .text_embeddings import PromptReader as PromptReader
from .text_embeddings import Text as Text
from .text_embeddings import TextEmbeddings as TextEmbeddings
from .text_embeddings import stack_rows as stack_rows
from .wan.space import latent_spec_of as latent_spec_of
