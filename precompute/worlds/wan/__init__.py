"""Wan 2.1 and 2.2 image-to-video, and Wan's VAE, which Cosmos-Predict2 and the worldlet share."""
