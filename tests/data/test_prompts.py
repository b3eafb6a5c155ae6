"""Splits and prompts are disjoint, stable and reproducible."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynatree.data import documents as tables
from dynatree.data import prompts, splits
from dynatree.data.documents import Document
from dynatree.errors import UserError

ids = st.lists(st.text("abcdef", min_size=1), min_size=1, max_size=12, unique=True)


def encode(text):
    """A token a byte."""
    return list(text.encode())


def corpus(names, length=400):
    """Documents with different tokens at different places."""
    return [
        Document(name, f"title {name}", "".join(chr(33 + (7 * k + n) % 90) for k in range(length)))
        for n, name in enumerate(names)
    ]


def evaluation(count=6, length=400):
    """Documents that all belong to the evaluation split."""
    return [
        splits.SplitDocument(d.id, d.title, "evaluation", "document", encode(d.text))
        for d in corpus([f"d{n}" for n in range(count)], length)
    ]


@given(ids, st.integers(0, 99), st.randoms())
def test_a_split_depends_on_seed_and_document_alone(names, seed, random):
    """Guards against a new document, or another order, moving documents between tuning and evaluation."""
    whole = splits.assign(corpus(names), 0.5, seed)
    shuffled = random.sample(names, len(names))
    assert splits.assign(corpus(shuffled[: len(names) // 2]), 0.5, seed).items() <= whole.items()


@given(ids, st.integers(0, 99))
def test_both_sides_exist_and_share_no_document(names, seed):
    """Guards against tuning on what is measured."""
    parts = splits.split(corpus(names), 0.5, seed, encode)
    sides = {side: {p.document_id for p in parts if p.split == side} for side in ("tuning", "evaluation")}
    assert all(sides.values())
    assert not sides["tuning"] & sides["evaluation"]


def test_a_single_document_is_halved_with_a_gap():
    """Guards against a data set of one book having nothing to tune on."""
    text = corpus(["x"])[0]
    tuning, held = splits.split([text], 0.5, 0, encode)
    assert (tuning.document_id, held.document_id) == ("x#tuning", "x#evaluation")
    assert tuning.origin.startswith("half of x")
    assert encode(text.text)[: len(tuning.ids)] == tuning.ids
    assert len(tuning.ids) + len(held.ids) == 400 - 40
    assert encode(text.text)[-len(held.ids) :] == held.ids


@pytest.mark.parametrize("start", ["body", "interior"])
@given(count=st.integers(1, 12), seed=st.integers(0, 20))
def test_more_prompts_keep_the_first_ones_and_do_not_overlap(start, count, seed):
    """Guards against recomputing every run when the scale grows, and against the same text twice."""
    found = prompts.choose(evaluation(), "data", 12, 40, 20, seed, start)
    assert prompts.choose(evaluation(), "data", count, 40, 20, seed, start) == found[:count]
    assert len({p.document_id for p in found[:6]}) == 6
    assert len({p.prompt_id for p in found}) == 12
    for a in found:
        assert a.prompt_id == f"data/{a.document_id}/{a.first_token}"
        assert len(a.ids) == 40
        assert all(a is b or a.document_id != b.document_id or abs(a.first_token - b.first_token) >= 40 for b in found)
        assert start == "body" or 40 <= a.first_token <= 340


def test_body_prompts_start_at_the_first_token():
    """Guards against a prompt in the middle of an article."""
    assert {p.first_token for p in prompts.choose(evaluation(), "data", 6, 40, 0, 0, "body")} == {0}


def test_too_few_prompts_say_how_many_there_are():
    """Guards against fewer prompts than asked for, silently; short documents do not count."""
    with pytest.raises(UserError, match="hold 2, from 2 documents"):
        prompts.choose(evaluation(2, 100) + evaluation(3, 50), "data", 3, 60, 40, 0, "body")


def test_bad_values_are_errors():
    """Guards against a share of percents, no documents, two of one name, and another start."""
    for documents, share in ((corpus("ab"), 20), ([], 0.5), (corpus("aa"), 0.5), (corpus("a", 3), 0.5)):
        with pytest.raises(UserError):
            splits.split(documents, share, 0, encode)
    with pytest.raises(UserError, match="body, interior"):
        prompts.choose(evaluation(), "data", 1, 40, 0, 0, "middle")


def test_tables_come_back_and_are_equal_byte_for_byte(tmp_path):
    """Guards against recomputation for a file that differs in nothing but its bytes."""
    chosen = prompts.choose(evaluation(), "data", 5, 40, 0, 0, "interior")
    for name in ("one", "two"):
        tables.write_table(tmp_path / name / "prompts", prompts.prompts_table(chosen))
        tables.write_documents(tmp_path / name / "documents", corpus("ab"))
        splits.write_tokens(tmp_path / name / "tokens", evaluation())
    assert prompts.read_prompts(tmp_path / "one" / "prompts") == chosen
    assert tables.read_documents(tmp_path / "one" / "documents") == corpus("ab")
    assert splits.read_tokens(tmp_path / "one" / "tokens") == evaluation()
    for name in ("prompts", "documents", "tokens"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    tables.write_table(tmp_path / "other", prompts.prompts_table(chosen).select(["ids"]))
    with pytest.raises(UserError, match="no column 'prompt_id'; choose one of ids"):
        prompts.read_prompts(tmp_path / "other")
