"""Claims as experiments: baselines in the same run, seeds, intervals, inequalities that may fail."""
