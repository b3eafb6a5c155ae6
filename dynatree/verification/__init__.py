"""From the target's logits at every node of a tree to the accepted path and the next token."""
