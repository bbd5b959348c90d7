"""From the command line to checked values, without importing torch."""
