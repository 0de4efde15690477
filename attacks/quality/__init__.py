"""Attacks on no-reference image quality models, one file a family."""
