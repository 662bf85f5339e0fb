"""Questions in every supported layout, read into one record, checked, counted and matched with latents.

It knows token counts and stores, but neither batches nor runs.
"""
