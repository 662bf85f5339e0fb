"""Rollouts made on demand, without a store: for one picture, for training without a cache, for an audit.

No other package of this stage may import it, except the check of the worldlet's rollouts.
"""
