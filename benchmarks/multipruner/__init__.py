"""The claim of MultiPruner."""
