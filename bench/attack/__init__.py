"""Attacks: their contract, the oracle they see, and the verdicts on what they return."""
