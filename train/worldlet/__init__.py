"""The worldlet's language model: a miniature Gemma with trained weights, and the code that made it."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""The folder of the weights in this package."""
