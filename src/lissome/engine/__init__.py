"""Loops that know no method: calibrate, remove, train, evaluate, checkpoint."""
