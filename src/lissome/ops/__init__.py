"""Maths on tensors: a reference of a few lines beside every fast function."""
