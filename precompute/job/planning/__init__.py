"""The plan of a job: its recipe, what remains to do, its cost, its memory, and warnings. Starts nothing."""
