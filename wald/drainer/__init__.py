"""drainer."""
