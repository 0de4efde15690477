"""Victims that see event frames."""
