"""Drafters: who proposes the children of a tree's frontier.

A drafter is one file with a class `Drafter`:

    start()                                    forget the last request
    depth_limit(committed) -> levels           how deep it can draft behind so many committed tokens
    propose(tree, frontier, branch, committed) tokens and log-probabilities [f, b] of the frontier's children,
                                               one batched call a level; level 0 has frontier [0]
    accept(kept)                               the nodes of the drafted tree that were accepted, root first
    forwards                                   model calls so far
"""
