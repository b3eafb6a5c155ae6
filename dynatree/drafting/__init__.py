"""Drafters: who proposes what a tree grows by.

A drafter is one file with `MODEL`, whether it is "unused", "optional" or "required", and a class `Drafter` of
(model, calibration of its step probabilities or None):

    start(processors)                          forget the last request; the next one's logits processors
    free(committed, limit)                     tokens and log-probabilities [k], k <= limit: a chain below the root
                                               that needs no model call
    depth_limit(committed) -> levels           how many levels it can draft behind so many committed tokens
    propose(tree, frontier, branch, committed) tokens and log-probabilities [f, b] of the frontier's children,
                                               likeliest first, one batched call a level; level 0 has frontier [0]
    accept(kept)                               the nodes of the drafted tree that were accepted, root first
    forwards                                   model calls so far
"""
