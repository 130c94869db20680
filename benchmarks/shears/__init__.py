"""Shears against plain, cut, nested and dense adapters: on classes of short texts, and on text."""
