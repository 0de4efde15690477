"""Spiking networks converted from ANNs."""
