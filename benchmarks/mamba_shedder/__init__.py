"""Mamba-Shedder against simpler choices of what to remove, on the models of the zoo."""
