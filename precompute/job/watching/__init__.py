"""What a job tells of itself while it runs and afterwards: events, the runs they tell of, the status of a cache."""
