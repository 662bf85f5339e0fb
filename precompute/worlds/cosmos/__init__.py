"""NVIDIA's Cosmos-Predict2, Cosmos-Predict2.5 and Cosmos 3: engines, forwards, prompts and families."""
