"""Built-in victims, one folder a family, and their shipped weights."""
