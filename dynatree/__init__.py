"""Dynamic token-tree speculative decoding of language models: exact, measured, reproducible."""

__version__ = "0.1.0"
