"""The store of latents: writing, committing, finding, reading, verifying, repairing and copying shards.

Knows nothing of the two stages that write and read it.
"""
