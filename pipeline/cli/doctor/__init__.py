"""`theworld doctor` and `theworld worlds`: what this machine has and can do."""
