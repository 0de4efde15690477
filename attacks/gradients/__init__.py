"""Gradient estimators, one file a family."""
