"""Where files lie: a folder, or a prefix of a bucket, with the same names in both. Only this imports obstore."""
