"""A model behind HTTP, in the words of the OpenAI interface."""
