"""Members of a sweep, each in a process of its own: on this machine, on a Ray cluster or as SLURM jobs."""
