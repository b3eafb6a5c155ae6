"""Text and models in: documents, clean-up, splits, prompts, where models come from; sources of text: sources/."""
