"""Where text comes from: one file a kind of source, and what all kinds share. Knows no model and no tokenizer."""
