"""The Hugging Face Hub and what its folders hold: data sets, weights, tokenizers, chat templates. None is trusted."""
