"""A controlled comparison: train every arm under one budget, evaluate each, test hypotheses, write a page.

It is the top of `train`: it may use training and evaluation, and neither of them knows of it.
"""
