"""Attacks that add and remove spikes."""
