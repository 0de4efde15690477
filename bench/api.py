"""Everything that a plugin needs, in one import.

The contracts (what to write), the mechanisms (what to call), and the two calls that do the work from
Python: `load_victim` and `evaluate`.
"""

__all__ = [name for name in dir() if not name.startswith("_")]
