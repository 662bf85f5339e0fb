"""`theworld ui`: its command, its server on loopback, and its page."""
