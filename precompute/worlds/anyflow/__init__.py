"""NVIDIA's AnyFlow FAR, which goes on chunk by chunk."""
