"""Searches of SmolLM2's Space at equal evaluations, what its figures cost, and how latency is predicted."""
