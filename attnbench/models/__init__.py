"""Networks with attention: what is inserted, where, and into what."""
