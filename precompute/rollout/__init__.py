"""From a batch of pixels to latents: the kinds of recipe, full batches, rollouts in chunks.

Knows nothing of where inputs come from, nor of jobs and workers.
"""
