"""Files of any kind: atomic writes, sealed JSON, a lock, hashes, tables, images, the Hub.

Knows nothing of latents, stores or the two stages.
"""
