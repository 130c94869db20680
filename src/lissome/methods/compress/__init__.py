"""Methods that give a smaller model."""
