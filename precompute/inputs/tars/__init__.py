"""Plain tars: their members, header by header, and which of them belong to one sample."""
