"""Attacks that move spikes in time."""
