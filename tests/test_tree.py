"""Property tests of the token tree against naive references that walk parents one by one."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynatree.tree import TokenTree

# Drafters state finite numbers, -10,000 at least.
STEPS = st.one_of(st.sampled_from([0.0, -0.0, -0.5, -1.0, -1e4]), st.floats(-20, 0, width=32))


@st.composite
def trees(draw: st.DrawFn, most_levels: int = 4, most_new: int = 6, tokens: int = 5) -> TokenTree:
    """Trees grown level by level as decoders grow them: log-probabilities never rise along a path, and often tie."""
    tree, level = TokenTree.root(draw(st.integers(0, tokens - 1))), [0]
    for _ in range(draw(st.integers(0, most_levels))):
        free = [(parent, token) for parent in level for token in range(tokens)]
        chosen = draw(st.lists(st.sampled_from(free), unique=True, max_size=most_new))
        if not chosen:
            break
        steps = draw(st.lists(STEPS, min_size=len(chosen), max_size=len(chosen)))
        level = list(range(len(tree), len(tree) + len(chosen)))
        log_probs = [tree.nodes.log_probs[parent] + step for (parent, _), step in zip(chosen, steps, strict=True)]
        tree = tree.extend([parent for parent, _ in chosen], [token for _, token in chosen], log_probs)
    return tree


def line(tree: TokenTree, node: int) -> list[int]:
    """`node` and its ancestors, root first, by walking parents."""
    path = [node]
    while path[-1] != 0:
        path.append(int(tree.parents[path[-1]]))
    return path[::-1]


@given(trees(), st.integers(0, 9))
def test_mask_and_positions_are_those_of_each_nodes_path(tree: TokenTree, prefix: int) -> None:
    """Guards against a visible sibling, and against breadth-first indices as positions."""
    mask, positions = tree.attention_mask(prefix), tree.positions(prefix)
    for node in range(len(tree)):
        path = line(tree, node)
        assert mask[node].nonzero().flatten().tolist() == [*range(prefix), *(prefix + ancestor for ancestor in path)]
        assert tree.paths[node] == path[1:]
        assert positions[node] == prefix + len(path) - 1


@given(trees(), st.integers(0, 30))
def test_top_is_the_sorted_best_and_closed_under_parents(tree: TokenTree, count: int) -> None:
    """Guards against ties (and 0.0, -0.0) that keep a child without its parent."""
    top = tree.top(count)
    key = {node: (-tree.nodes.log_probs[node], int(tree.depths[node]), node) for node in range(1, len(tree))}
    assert top == [0, *sorted(sorted(key, key=key.__getitem__)[:count])]
    assert {int(tree.parents[node]) for node in top[1:]} <= set(top)


@given(trees(), st.integers(0, 30))
def test_subtree_renumbers_every_field(tree: TokenTree, count: int) -> None:
    """Guards against parents or ancestors that still carry the numbers of the larger tree."""
    nodes = tree.top(count)
    small = tree.subtree(nodes)
    number = {old: new for new, old in enumerate(nodes)}
    for new, old in enumerate(nodes):
        assert (small.tokens[new], small.depths[new]) == (tree.tokens[old], tree.depths[old])
        assert small.log_probs[new] == tree.log_probs[old]
        assert int(small.parents[new]) == (-1 if old == 0 else number[int(tree.parents[old])])
        assert small.ancestors[new].nonzero().flatten().tolist() == [number[ancestor] for ancestor in line(tree, old)]


@given(trees(), st.integers(0, 30), st.integers(0, 30))
def test_a_tree_cut_twice_knows_its_nodes_before_the_first_cut(tree: TokenTree, count: int, fewer: int) -> None:
    """Guards a draft cache that keeps other nodes' keys as those of the accepted path."""
    once = tree.subtree(tree.top(count))
    twice = once.subtree(once.top(fewer))
    numbers = twice.before_the_cut(torch.arange(len(twice)))
    assert torch.equal(tree.tokens[numbers], twice.tokens) and torch.equal(tree.depths[numbers], twice.depths)
    assert torch.equal(tree.log_probs[numbers], twice.log_probs)


def naive_path(tree: TokenTree, next_tokens: Tensor) -> list[int]:
    """Follow the target from the root for as long as a child carries its token."""
    path = [0]
    while True:
        wanted = int(next_tokens[path[-1]])
        children = [node for node in range(1, len(tree)) if int(tree.parents[node]) == path[-1]]
        agreeing = [node for node in children if int(tree.tokens[node]) == wanted]
        if not agreeing:
            return path
        path.append(agreeing[0])


@given(trees(tokens=2, most_levels=6), st.data())
def test_accepted_path_follows_the_target_node_by_node(tree: TokenTree, data: st.DataObject) -> None:
    """Guards against accepting a node whose own token is right but whose ancestors were rejected."""
    next_tokens = torch.tensor(data.draw(st.lists(st.integers(0, 1), min_size=len(tree), max_size=len(tree))))
    path, token = tree.accepted_path(next_tokens.tolist().__getitem__)
    assert path.tolist() == naive_path(tree, next_tokens)
    assert token == next_tokens[path[-1]]


def test_a_right_token_below_a_rejected_parent_is_not_accepted() -> None:
    """The smallest case in which counting hits without parents goes wrong."""
    tree = TokenTree.root(0).extend([0, 0], [1, 2], [-1.0, -2.0]).extend([2], [3], [-3.0])
    path, token = tree.accepted_path([1, 9, 3, 9].__getitem__)
    assert path.tolist() == [0, 1] and token == 9


def test_depth_is_that_of_the_deepest_node() -> None:
    """Guards against the number of nodes being taken for the depth."""
    tree = TokenTree.root(0).extend([0, 0], [1, 2], [-1.0, -2.0])
    assert (TokenTree.root(0).depth, tree.depth) == (0, 1)


def test_a_chain_is_its_nodes_one_below_the_other() -> None:
    """Guards against parents or visibility that differ from those of growing it level by level."""
    tokens, steps = [5, 6, 7], [-0.5, -0.25, -1.0]
    chain, grown = TokenTree.root(1).chain(tokens, steps), TokenTree.root(1)
    for i in range(3):
        grown = grown.extend([i], tokens[i : i + 1], [grown.nodes.log_probs[i] + steps[i]])
    for field in ("tokens", "parents", "depths", "log_probs", "ancestors"):
        assert torch.equal(getattr(chain, field), getattr(grown, field)), field


@given(trees(most_levels=3), st.data())
def test_graft_merges_equal_children_and_raises_what_hangs_below(tree: TokenTree, data: st.DataObject) -> None:
    """Guards against two nodes for one path, and against log v that rises along a path."""
    parent = data.draw(st.integers(0, len(tree) - 1))
    tokens = data.draw(st.lists(st.integers(0, 6), unique=True, min_size=1, max_size=7))
    steps = data.draw(st.lists(st.floats(-5, 0), min_size=len(tokens), max_size=len(tokens)))
    above = tree.nodes.log_probs[parent]
    grown = tree.graft([parent] * len(tokens), tokens, [above + step for step in steps])
    paths = [tuple(grown.tokens[line(grown, node)].tolist()) for node in range(len(grown))]
    assert len(set(paths)) == len(paths)
    children = grown.tokens[grown.parents == parent].tolist()
    assert set(children) == {*tree.tokens[tree.parents == parent].tolist(), *tokens}
    values = grown.nodes.log_probs
    assert all(values[node] <= values[grown.nodes.parents[node]] for node in range(1, len(grown)))
    for token, step in zip(tokens, steps, strict=True):
        node = next(n for n in range(1, len(grown)) if grown.parents[n] == parent and grown.tokens[n] == token)
        assert not values[node] < above + step - 1e-2


def test_graft_leaves_no_node_above_its_parent() -> None:
    """Guards against a sum that rounds up, by which a budget would take a child without its parent."""
    tree = TokenTree.root(0).chain([1, 2], [-(2.0**-4 + 2.0**-56), -3.0])
    grafted = tree.graft([1], [2], tree.nodes.log_probs[1:2])
    assert grafted.nodes.log_probs[2] <= grafted.nodes.log_probs[1]
    assert grafted.top(1) == [0, 1]
