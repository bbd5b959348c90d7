"""Code that every wing may use: errors, files, the console, processor cores."""
