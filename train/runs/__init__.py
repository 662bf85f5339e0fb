"""Run folders: what a training saves, how it is loaded, resumed, and shared on the Hub.

It does not know how to train or evaluate.
"""
