"""Text, choice tasks and named downloads; everything a method may see, and everything it must not."""
