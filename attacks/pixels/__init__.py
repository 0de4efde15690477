"""Attacks on pixels."""
