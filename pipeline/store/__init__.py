"""The store of latents: writing, committing, finding and reading shards; what else is done with a store is in upkeep/.

Knows nothing of the two stages that write and read it.
"""
