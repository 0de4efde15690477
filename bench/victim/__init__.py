"""Victims: networks behind one contract."""
