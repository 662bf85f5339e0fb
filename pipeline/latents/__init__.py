"""What a latent is: recipe, key, latent space, tensors, time axis, and the protocol of a world model.

Knows nothing of stores or of how latents are made.
"""
