"""Where the members of a sweep run: this machine, a Ray cluster, SLURM."""
