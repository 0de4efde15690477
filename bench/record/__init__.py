"""Records: what was measured, as files."""
