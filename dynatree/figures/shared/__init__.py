"""What figures share: looks, grammar, queries, panels, captions, files. Knows no figure."""
