"""The contract both stages share: latents, recipes, keys, the store, and the command line."""
