"""Data sets that are held in memory as one tensor: digits, CIFAR and noise."""
