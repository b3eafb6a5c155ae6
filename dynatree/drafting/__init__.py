"""Drafters: who proposes what a tree grows by.

A drafter is one file with `MODEL`, whether it is "unused", "optional" or "required", and a class `Drafter` of
(model, calibration of its step probabilities or None), one a request:

    start(processors, cache)           forget the last request; the next one's logits processors, an empty cache
    free(committed, limit)             tokens and log-probabilities [k], k <= limit: a chain below the root that needs
                                       no model call
    depth_limit(committed) -> levels   how many levels it can draft behind so many committed tokens; where that is
                                       never above 0, the next two are left out
    ask(tree, frontier, text)          what to feed the model for a level; level 0 has frontier [0]. Whoever decodes
                                       makes the one batched call a level, over all requests that are decoded together
    answer(logits, tree, frontier, branch, text)
                                       tokens and log-probabilities [f, b] of the frontier's children, likeliest first
    accept(kept)                       the nodes of the drafted tree that were accepted, root first

`committed` and `text` are the same tokens, as a list and as a tensor.
"""

import torch

# What `free` gives where nothing is proposed.
NOTHING = torch.empty(0, dtype=torch.long), torch.empty(0)
