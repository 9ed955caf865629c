"""wald: a durable write-ahead-log batching daemon."""
