"""Latents as pictures: decode them, and draw samples of a store and answers.

Knows nothing of jobs, and never needs a whole world model, only its autoencoder.
"""
