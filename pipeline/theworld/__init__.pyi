"""See what happens next: roll images forward once, keep the latents, and train a language model to read them."""

from theworld import train as train
from theworld.model import TheWorld as TheWorld
from theworld.pipeline import open_store as open_store
from theworld.train import ask as ask

__version__: str
