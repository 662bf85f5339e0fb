"""Pixels: image and video files to float tensors of a recipe's size, and video files written.

Knows nothing of world models, stores or where inputs come from. The only package that imports PyAV.
"""
