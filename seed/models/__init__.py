"""Models: open them, understand them, cut them, save them. Knows transformers."""
