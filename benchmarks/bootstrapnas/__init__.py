"""The claim on bootstrapnas."""
