"""One run from configuration to result.json, and the uses of a finished run."""
