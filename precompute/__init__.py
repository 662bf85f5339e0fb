"""Stage one: images in, a store of rollouts out."""
