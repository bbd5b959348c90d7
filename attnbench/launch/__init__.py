"""Launchers that run the members of a sweep: on this machine, on a Ray cluster, or with SLURM."""
