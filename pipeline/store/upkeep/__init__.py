"""What is done with a whole store: describe, check, heal, tidy and copy it. Reading and writing need none of it."""
