"""One file per model family; each offers `read(module)`, which raises when the model is of another one."""
