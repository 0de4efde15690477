"""Built-in defenses, one file a defense."""
