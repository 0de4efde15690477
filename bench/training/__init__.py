"""Recipes, defenses and the training loop."""
