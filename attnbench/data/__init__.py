"""Data sets for classification and detection, and the batches drawn from them.

A ``Dataset`` has two ``Split``s and the facts about them that a network needs. A ``Loader`` draws batches from a split.
Small data sets are held in memory as one tensor (``in_memory/resident.py``). Worker processes decode the images of
large ones from files (``images/files.py``). The samples of a batch and their augmentation are a pure function of
(seed, epoch, sample); the number of workers and processes does not matter (``sampling.py``).

This file imports nothing, so that a builder's options can be read without importing torch.
"""
