"""The worldlet's language model: a miniature Gemma with trained weights, and how it is made."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""The folder of the weights in this package."""
