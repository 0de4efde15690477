"""Records in, tables out. Nothing here runs a model."""
