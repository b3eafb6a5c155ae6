"""The backend in torch: transformers' modules with a cache, attention and packed weights of our own."""
