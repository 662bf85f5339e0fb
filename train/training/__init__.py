"""Train a reader and LoRA: the training loop, checkpoints, several processes, trackers.

It writes run folders and knows nothing of evaluation; what a run answers is measured in `evaluation`.
"""
