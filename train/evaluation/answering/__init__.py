"""How a run answers: forward passes over packed rows of prompts, and the rows that fit in memory."""
