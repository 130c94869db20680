"""Other formats for a saved model: one file each."""
