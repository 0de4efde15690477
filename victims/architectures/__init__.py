"""The networks that papers attack, at their published size: recipes without weights."""
