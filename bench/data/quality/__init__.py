"""Data sets of image quality."""
