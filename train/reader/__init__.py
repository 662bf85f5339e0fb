"""Latents to world tokens, and the model that reads them in front of its prompt.

This is the lowest package of `train`: it knows no file, no question and no run. layouts.py and context_budget.py load
no torch, so that commands can count tokens quickly.
"""
