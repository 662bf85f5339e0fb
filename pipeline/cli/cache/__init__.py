"""`theworld cache …`: what is done with stores that are there."""
