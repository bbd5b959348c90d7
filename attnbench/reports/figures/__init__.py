"""Figures of tables, of any runs, and of what happens inside trained networks."""
