"""V-JEPA 2: latents of an encoder, predicted without a picture."""
