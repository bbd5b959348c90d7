"""Pictures of tables, of any runs, and of the inside of trained networks."""
