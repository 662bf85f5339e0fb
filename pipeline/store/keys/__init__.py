"""The keys of a store: sorted runs of them, their snapshot, and the keys that were dropped on purpose."""
