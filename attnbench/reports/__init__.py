"""The papers' tables and figures, and comparisons of any runs."""
