"""Listing inputs: what lies at a place, in little memory, and what was left out."""
