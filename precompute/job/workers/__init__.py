"""Workers and their pools: in this process, in a private Ray, on a cluster. Ray is imported here."""
