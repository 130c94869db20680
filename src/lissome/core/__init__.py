"""Contracts that every layer shares; the standard library only."""
