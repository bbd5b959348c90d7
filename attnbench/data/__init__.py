"""Data sets and the batches drawn from them: digits, CIFAR-10 and -100, ImageNet.

A ``Dataset`` is two ``Split``s and what a network must know of them; a ``Loader`` draws batches
from a split. Small sets live in memory as one tensor (``in_memory/resident.py``), large ones are decoded from
files by worker processes (``images/files.py``). Which samples a batch holds and how they are augmented is
a pure function of (seed, epoch, sample), whatever the number of workers and processes
(``sampling.py``).

Nothing is imported here: the options of a builder are read without paying for torch.
"""
