"""Methods that give the same tokens sooner."""
