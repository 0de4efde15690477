"""Event data sets."""
