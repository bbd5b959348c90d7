"""One run from configuration to result.json, and what is done with a finished one."""
