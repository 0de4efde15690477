"""Sections to files: tidy data, JSON, Markdown, a page."""
