"""From a store and questions to batches: which samples, in which order, with which latents.

It knows no world model: rolling out live is passed in. It does not know how to train or evaluate.
"""
