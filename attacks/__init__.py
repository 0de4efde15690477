"""Built-in attacks, one file an attack."""
