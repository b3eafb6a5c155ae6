"""One causal language model behind one door (language_model.py): logits of tokens and trees. Knows no policy."""
