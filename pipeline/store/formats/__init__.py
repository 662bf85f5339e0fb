"""The bytes of a shard in each format, Zarr and WebDataset."""
