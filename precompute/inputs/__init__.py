"""Inputs: which files, tar members and table cells a place holds, their content keys, and decoding in a sandbox.

Knows nothing of jobs, workers and previews.
"""
