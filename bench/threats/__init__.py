"""Geometries: what may change of an input, and how its size is measured."""
