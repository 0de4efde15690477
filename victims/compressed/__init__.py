"""Networks made small: integer-only, pruned, quantised, trained in 8 bits, or only partly spiking."""
