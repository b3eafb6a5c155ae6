"""Growth and selection policies: which children a tree keeps, and which of its nodes are verified.

A policy is one file with a class `Policy`, a pydantic model of its knobs:

    branch, depth                      most children of a node, most levels
    children(tree, log_probs) -> mask  of the proposed children, in proposal order, which to keep
    frontier(tree, new) -> nodes       of the `new` nodes, which to expand next; none: stop
    select(tree) -> nodes              ascending, closed under parents, root included: what to verify
"""
