"""Directly trained spiking networks."""
