"""Published data sets: where they are, how they are transferred, unpacked and put in place."""
