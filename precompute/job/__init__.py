"""A precompute job: prepare, plan, run the workers, report.

Knows nothing of previews and live rollouts. Ray is imported in `ray_local` and `ray_cluster` alone.
"""
