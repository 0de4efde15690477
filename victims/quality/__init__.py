"""Image quality models: victims that answer one score."""
