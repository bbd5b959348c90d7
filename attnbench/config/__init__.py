"""Turns a command line into checked values, without importing torch."""
