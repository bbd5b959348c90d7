"""What any wing may use: errors, files, the console, processor cores."""
