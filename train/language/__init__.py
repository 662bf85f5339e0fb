"""The language model: its files, its tokenizer and prompt format, loading it, LoRA around it.

It knows nothing of questions, latents or runs. Only this package and `runs` import peft.
"""
