"""Certificates: what can be proven about a victim."""
