"""The worldlet's scenes: four families, their physics and pictures, and the outcome of a clip."""
