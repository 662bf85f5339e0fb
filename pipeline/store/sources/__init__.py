"""Which input is which key: the table of sources, and a fast scan of it."""
