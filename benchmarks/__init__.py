"""Claims as experiments: every one runs with baselines beside it, and its results are stored as JSON."""
