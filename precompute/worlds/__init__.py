"""World models: the Cosmos, Wan and V-JEPA engines, their autoencoders and prompts, and the kit for adding a family.

Its names are what a plugin package needs; they are listed in `__init__.pyi`. It knows pixels and latents, and nothing
of inputs, jobs or stores.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
