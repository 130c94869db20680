"""The federation engine against Flower's own averaging, and its memory by the number of clients."""
