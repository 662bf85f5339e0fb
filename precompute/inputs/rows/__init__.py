"""Rows that name inputs: lists and tables, their fields, and the spellings of their paths."""
