"""Data sets: what a data set is, and the ones that ship inside the package's dependencies."""
