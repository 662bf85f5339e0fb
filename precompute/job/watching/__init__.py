"""What a job reports while it runs and afterwards: events, runs, and the status of a cache."""
