"""Suites: a TOML file becomes a list of cells."""
