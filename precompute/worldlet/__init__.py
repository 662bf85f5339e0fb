"""The worldlet: a miniature world model with trained weights, the scenes it knows, and how both are made."""
