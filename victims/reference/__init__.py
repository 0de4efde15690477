"""Networks without spikes, of the same shape as the spiking ones: what "more robust" is measured against."""
