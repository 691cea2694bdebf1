"""Models built by hand whose circuit is known."""
