"""Documents, how books are cleaned, how documents are split and prompts chosen. Where text comes from: sources/."""
