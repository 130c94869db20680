"""One file per model family; each offers `read(module)`, which returns an `Anatomy` or None when the family is another."""
