"""Spiking neurons and the rules of their backward pass."""
