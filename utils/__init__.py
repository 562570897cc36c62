"""What several notebooks share, and nothing else."""
