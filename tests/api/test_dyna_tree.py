"""The library from Python: any model that is given, any kind of prompt, and everything put back."""

import copy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    MaxTimeCriteria,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    T5Config,
    T5ForConditionalGeneration,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from dynatree import DynaTree, Generation, files
from dynatree.api import calibrations
from dynatree.data import model_sources
from dynatree.distil.student import shrink
from dynatree.engine import checkpoint, fusion, successors
from dynatree.engine.language_model import sampled
from dynatree.engine.tokenizer import require_tokenizer
from dynatree.errors import UserError
from dynatree.measuring import draft_gguf
from tests import models

PROMPT = [3, 1, 4, 1, 5]
PROMPTS = [[3, 1, 4, 1, 5], [7], [9, 8, 7, 6] * 5]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder and a timing lock of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / "cache"


def expected(model: PreTrainedModel, prompt: list[int], count: int, **options: Any) -> list[int]:
    """transformers' own greedy output."""
    ids = torch.tensor([prompt])
    keys = {"do_sample": False, "max_new_tokens": count, "pad_token_id": 0, **options}
    output = model.generate(ids, attention_mask=torch.ones_like(ids), **keys)
    found: list[int] = output[0, len(prompt) :].tolist()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of bytes with a chat template, as a folder."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    home = tmp_path_factory.mktemp("models")
    source = {"kind": "random", "architecture": "llama", "configuration": {**shape, "max_position_embeddings": 256}}
    model_sources.build(model_sources.parse(source), home / "bytes", home, seed=1)
    return home / "bytes"


@pytest.mark.parametrize("architecture", models.CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_loaded_model_decodes_as_its_generate(architecture: str, dtype: torch.dtype) -> None:
    """Guards the promise for models that are not ours: alone, together, with a drafter and without."""
    model, helper = (models.random_model(architecture, seed, dtype) for seed in (0, 0))
    wanted = [expected(model, prompt, 20) for prompt in PROMPTS]
    for drafter, method in ((None, "dynatree"), (helper, "dynatree"), (helper, "linear"), (None, "autoregressive")):
        with DynaTree(model, drafter=drafter, method=method) as tree:
            together = tree.generate(PROMPTS, max_new_tokens=20)
            alone = [tree.generate(prompt, max_new_tokens=20) for prompt in PROMPTS]
        assert isinstance(together, list) and [one.tokens for one in together] == wanted, method
        assert [one.tokens for one in alone if isinstance(one, Generation)] == wanted, method


@pytest.mark.parametrize("architecture", models.CONFIGS)
def test_a_saved_folder_decodes_as_its_generate(architecture: str, tmp_path: Path) -> None:
    """Guards folders that are not ours: no manifest, no tokenizer, transformers' own files."""
    model, helper = (models.random_model(architecture, seed, torch.float32) for seed in (0, 0))
    model.save_pretrained(tmp_path / "target")
    helper.save_pretrained(tmp_path / "drafter")
    wanted = [expected(model, prompt, 20) for prompt in PROMPTS]
    for drafter in (None, tmp_path / "drafter"):
        tree = DynaTree.from_pretrained(tmp_path / "target", drafter=drafter)
        assert [one.tokens for one in tree.generate(PROMPTS, max_new_tokens=20, eos_token_id=None)] == wanted


@pytest.mark.parametrize("architecture", models.CONFIGS)
def test_close_puts_everything_back(architecture: str) -> None:
    """Guards against weights, attention, hooks or a mode that a user's model keeps."""
    model = models.random_model(architecture, dtype=torch.float32).train()
    before, state = copy.deepcopy(model), {name: id(module) for name, module in model.named_modules()}
    attention, hooks = model.config._attn_implementation, len(model._forward_pre_hooks)
    tree = DynaTree(model)
    tree.generate(PROMPT, max_new_tokens=8)
    tree.close()
    assert {name: id(module) for name, module in model.named_modules()} == state
    assert model.config._attn_implementation == attention and len(model._forward_pre_hooks) == hooks
    assert model.training and all(module.training for module in model.modules())
    ids = torch.tensor([PROMPT])
    assert torch.equal(model.eval()(ids).logits, before.eval()(ids).logits)
    assert expected(model, PROMPT, 12) == expected(before, PROMPT, 12)


@pytest.mark.parametrize("architecture", models.CONFIGS)
@pytest.mark.parametrize("oldest_first", [True, False])
def test_a_model_in_two_hands_is_put_back_by_the_last(architecture: str, oldest_first: bool) -> None:
    """Guards against dropout and attention of its own in a model that somebody else still decodes with."""
    model = models.random_model(architecture, dtype=torch.bfloat16).train()
    attention = model.config._attn_implementation
    trees = [DynaTree(model, method="autoregressive"), DynaTree(model)]
    before = trees[0].generate(PROMPT, max_new_tokens=8).tokens
    used = model.config._attn_implementation
    first, second = trees if oldest_first else trees[::-1]
    first.close()
    first.close()
    assert not model.training and model.config._attn_implementation == used
    assert second.generate(PROMPT, max_new_tokens=8).tokens == before
    second.close()
    assert all(module.training for module in model.modules()) and model.config._attn_implementation == attention


@pytest.mark.parametrize(
    "given",
    [
        {"drafter": lambda: models.random_model(vocab_size=99, dtype=torch.float32)},
        {"drafter": lambda: models.random_model("mistral", dtype=torch.float32, sliding_window=8)},
        {"calibration": lambda: "nowhere"},
    ],
)
def test_what_fails_changes_nothing(given: dict[str, Any]) -> None:
    """Guards models that nobody could put back: the constructor gave no object to close."""
    model = models.random_model(dtype=torch.float32)
    values = {key: value() for key, value in given.items()}
    every = [model, *[value for value in values.values() if isinstance(value, PreTrainedModel)]]
    before = [(one.config._attn_implementation, len(one._forward_pre_hooks), [*one.state_dict()]) for one in every]
    classes = [[type(module) for module in one.modules()] for one in every]
    with pytest.raises(UserError):
        DynaTree(model, **values)
    after = [(one.config._attn_implementation, len(one._forward_pre_hooks), [*one.state_dict()]) for one in every]
    assert after == before and [[type(module) for module in one.modules()] for one in every] == classes


def test_a_model_in_use_is_saved_whole(tmp_path: Path) -> None:
    """Guards checkpoints that are written while the layers are packed."""
    model = models.random_model(dtype=torch.float32)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with DynaTree(model):
        state = model.state_dict()
        model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    for name, weight in before.items():
        assert torch.equal(state[name], weight) and torch.equal(again[name], weight)


def test_a_name_is_no_method_of_ones_own(folder: Path) -> None:
    """Guards the way from one constructor to the other against a traceback."""
    with pytest.raises(UserError, match=r"method: got 'autoregressive'; .* in DynaTree\(\.\.\., method=NAME\)"):
        DynaTree.by("autoregressive", folder)  # type: ignore[arg-type]


def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    """Guards pairs of one vocabulary's size whose tokens mean something else."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "manifest.json").unlink()
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    swapped = text.replace('"a": ', '"?": ', 1).replace('"b": ', '"a": ', 1).replace('"?": ', '"b": ', 1)
    (other / "tokenizer.json").write_text(swapped, encoding="utf-8")
    with pytest.raises(UserError, match="have different tokenizers"):
        DynaTree.from_pretrained(folder, drafter=other)


def test_a_closed_one_says_so() -> None:
    """Guards against decoding on a model that was put back."""
    tree = DynaTree(models.random_model())
    tree.close()
    with pytest.raises(UserError, match="it is closed"):
        tree.generate(PROMPT, max_new_tokens=3)
    with pytest.raises(UserError, match="it is closed"):
        tree.calibrate()
    with DynaTree(models.random_model()) as open_one:
        assert open_one.generate(PROMPT, max_new_tokens=3, do_sample=False).tokens
        with pytest.raises(UserError, match="prompt: a list of list; this takes one prompt"):
            open_one.stream([[3], [4]], max_new_tokens=3)  # type: ignore[arg-type]


class Banned(LogitsProcessor):
    """One of one's own: no token that the last one is above by one."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return scores.scatter(1, (input_ids[:, -1:] + 1) % scores.shape[1], -torch.inf)  # type: ignore[return-value]


class After(StoppingCriteria):
    """Stop once the text is `length` long."""

    def __init__(self, length: int):
        self.length = length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> torch.BoolTensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)  # type: ignore[return-value]


@pytest.mark.parametrize("method", ["dynatree", "dynatree_threshold", "autoregressive", "transformers", "assisted"])
def test_any_processor_and_any_criterion_is_honoured(method: str) -> None:
    """Guards against processors that see another node's path, and criteria asked only at the end of a commit."""
    model, helper = models.random_model(), models.random_model()
    for listed in (
        [SuppressTokensLogitsProcessor(list(range(10, 30)))],
        [NoRepeatNGramLogitsProcessor(2), Banned()],
    ):
        with DynaTree(model, drafter=helper, method=method) as tree:
            found = tree.generate(PROMPT, max_new_tokens=24, logits_processor=LogitsProcessorList(listed))
        assert isinstance(found, Generation)
        assert found.tokens == expected(model, PROMPT, 24, logits_processor=LogitsProcessorList(listed))
    for length in (6, 9, 14):
        criteria = StoppingCriteriaList([MaxTimeCriteria(99.0), After(length)])
        with DynaTree(model, drafter=helper, method=method) as tree:
            found = tree.generate(PROMPT, max_new_tokens=24, stopping_criteria=criteria, repetition_penalty=1.2)
        assert isinstance(found, Generation) and (len(found.tokens), found.finish_reason) == (length - 5, "stop")
        assert found.tokens == expected(model, PROMPT, length - 5, repetition_penalty=1.2)


@pytest.mark.parametrize("method", ["fixed_tree", "linear", "autoregressive"])
def test_processors_that_know_steps_or_prompts_by_their_place_are_asked_for_one_prompt_s_nodes(method: str) -> None:
    """Guards against a node that is taken for a prompt, and a state that rejected branches have changed."""
    model, helper = models.random_model(), models.random_model()
    ids = torch.tensor([PROMPT])
    allowed = PrefixConstrainedLogitsProcessor(lambda row, _: [[*range(4, 30)]][row], 1)
    of_one = [allowed, EncoderRepetitionPenaltyLogitsProcessor(1.5, ids), EncoderNoRepeatNGramLogitsProcessor(1, ids)]
    guided = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, model)
    with DynaTree(model, drafter=helper, method=method) as tree:
        for processor in of_one:
            listed = LogitsProcessorList([processor])
            found = tree.generate(PROMPT, max_new_tokens=24, logits_processor=listed)
            assert isinstance(found, Generation)
            assert found.tokens == expected(model, PROMPT, 24, logits_processor=listed)
            drawn = {"max_new_tokens": 24, "logits_processor": listed, "do_sample": True, "num_return_sequences": 3}
            # To a copy the prompt's place is that of the prompt, and not its own.
            several = [
                tree.generate(PROMPT, **(drawn | {"num_return_sequences": None}), request_key=key) for key in range(3)
            ]
            assert [one.tokens for one in tree.generate(PROMPT, **drawn)] == [one.tokens for one in several]
            for more in ({}, drawn):
                with pytest.raises(UserError, match="it tells prompts by their place, and here are 2; give one"):
                    tree.generate([PROMPT, PROMPT[::-1]], **{"max_new_tokens": 24, "logits_processor": listed, **more})
        with pytest.raises(UserError, match="UnbatchedClassifierFreeGuidanceLogitsProcessor: it keeps what it saw"):
            tree.stream(PROMPT, max_new_tokens=24, logits_processor=[guided])


def test_a_generation_says_what_it_is() -> None:
    """Guards the attributes and the line that a notebook shows."""
    model, helper = models.random_model(), models.random_model()
    plain = expected(model, PROMPT, 24)
    with DynaTree(model, drafter=helper, method="linear") as tree:
        found = tree.generate(PROMPT, max_new_tokens=24)
        ended = tree.generate(PROMPT, max_new_tokens=24, eos_token_id=plain[5])
    assert isinstance(found, Generation) and isinstance(ended, Generation)
    assert (found.text, found.finish_reason, ended.finish_reason) == (None, "length", "eos")
    assert ended.tokens == plain[: plain.index(plain[5]) + 1]
    assert found.rounds < 23 and found.tokens_per_round == pytest.approx(23 / found.rounds) and found.seconds > 0
    assert (
        f"24 tokens in {found.rounds} rounds" in repr(found)
        and repr(tree) == "DynaTree(LlamaForCausalLM, drafter LlamaForCausalLM, method linear)"
    )
    assert "vconcat" in found.tree(0).to_json()
    with pytest.raises(UserError, match=r"round: no 99; this output has \d+"):
        found.tree(99)


def test_text_chats_and_lists_of_them(folder: Path) -> None:
    """Guards the kinds of prompts, and pieces that do not add up to the text."""
    tree = DynaTree.from_pretrained(folder)
    tokenizer = tree.tokenizer
    assert tokenizer is not None
    text = tree.generate("a tree, Bäume", max_new_tokens=20)
    assert isinstance(text, Generation) and text.text == tokenizer.decode(text.tokens)
    assert text.tokens == expected(tree._target.model, tokenizer.encode("a tree, Bäume"), 20, eos_token_id=0)
    assert "".join(tree.stream("a tree, Bäume", max_new_tokens=20)) == text.text
    # Any token may be a special one; the tokens that are given stay as they are.
    tokenizer.add_special_tokens({"pad_token": tokenizer.convert_ids_to_tokens(text.tokens[-1])})
    bare = tree.generate("a tree, Bäume", max_new_tokens=20, skip_special_tokens=True)
    assert bare.tokens == text.tokens
    assert bare.text == tokenizer.decode([token for token in text.tokens if token != text.tokens[-1]])
    with pytest.raises(UserError, match="chat messages need a tokenizer with a chat template"):
        tree.generate([{"role": "user", "content": "hi"}], max_new_tokens=4)
    tokenizer.chat_template = TEMPLATE
    chat = tree.generate([{"role": "user", "content": "hi"}], max_new_tokens=12)
    same = tree.generate("<user>hi<a>", max_new_tokens=12)
    assert isinstance(chat, Generation) and isinstance(same, Generation) and chat.tokens == same.tokens
    both = tree.generate(["a tree, Bäume", tokenizer.encode("<user>hi<a>")], max_new_tokens=12)
    assert isinstance(both, list) and [one.tokens for one in both] == [text.tokens[:12], same.tokens]
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="the tokenizer's chat template refuses these messages: roles must alternate"):
        tree.generate([{"role": "user", "content": "hello"}], max_new_tokens=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_model_in_use_can_be_copied(dtype: torch.dtype) -> None:
    """Guards a model that somebody copies meanwhile, from buffers and locks that nothing can copy."""
    model = models.random_model(dtype=dtype)
    with DynaTree(model) as tree:
        found = tree.generate(PROMPT, max_new_tokens=10)
        with DynaTree(copy.deepcopy(model)) as other:
            assert other.generate(PROMPT, max_new_tokens=10).tokens == found.tokens


def test_an_answer_that_fails_is_left_out(folder: Path) -> None:
    """Guards a conversation from half an answer that nobody gave up, and from its question without one."""

    def broken(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] > start + 3:
            raise RuntimeError("broken")
        return scores

    tree = DynaTree.from_pretrained(folder)
    assert tree.tokenizer is not None
    tree.tokenizer.chat_template = TEMPLATE
    chat = tree.chat()
    first = "".join(chat.say("hi", max_new_tokens=8))
    said, start = [*chat.messages], len(tree.tokenizer.encode(f"<user>hi<assistant>{first}<user>so<a>"))
    with pytest.raises(RuntimeError, match="broken"):
        list(chat.say("so", max_new_tokens=20, logits_processor=[broken]))
    assert chat.messages == said
    answer = chat.say("so", max_new_tokens=20)
    shown = next(answer)
    answer.close()
    assert chat.messages == [*said, {"role": "user", "content": "so"}, {"role": "assistant", "content": shown}]


def test_an_answer_to_what_is_no_more_is_left_out(folder: Path) -> None:
    """Guards a conversation that began anew, or went on, while an answer was open: closing that would undo it."""
    tree = DynaTree.from_pretrained(folder)
    assert tree.tokenizer is not None
    tree.tokenizer.chat_template = TEMPLATE
    chat = tree.chat("be")
    answer = chat.say("hi", max_new_tokens=20)
    next(answer)
    chat.reset()
    answer.close()
    assert (chat.messages, chat.reply, chat.reused) == ([{"role": "system", "content": "be"}], None, 0)
    first = chat.say("one", max_new_tokens=20)
    next(first)
    list(chat.say("two", max_new_tokens=20))
    said, reply = [*chat.messages], chat.reply
    first.close()
    assert [message["content"] for message in said[:2]] == ["be", "two"] and len(said) == 3
    assert chat.messages == said and chat.reply is reply
    list(chat.say("three", max_new_tokens=8))
    assert chat.messages[:3] == said and len(chat.messages) == 5


def test_a_number_of_tokens_that_is_none_is_one_clear_line(folder: Path) -> None:
    """Guards who takes it from a form or a file: a number is written as it may be, all else is told at once."""
    tree = DynaTree.from_pretrained(folder)
    assert tree.tokenizer is not None
    tree.tokenizer.chat_template = TEMPLATE
    given: Any
    for given in (None, "few", 0):
        for ask in (tree.generate, tree.stream, tree.check_prompt, tree.warm_up, tree.chat().say):
            with pytest.raises(UserError, match=r"max_new_tokens: Input should be .*\(got"):
                ask("a tree", given)
    given = "4"
    assert tree.generate("a tree", given).tokens == tree.generate("a tree", 4).tokens
    chat = tree.chat()
    assert "".join(chat.say("a tree", given)) == (chat.reply and chat.reply.text)


@pytest.mark.parametrize("text", [[], "", ["a tree", ""], [[]]], ids=str)
def test_a_calibration_wants_text_to_go_on_from(folder: Path, text: Any) -> None:
    """Guards against an error from deep in the measurement."""
    tree = DynaTree.from_pretrained(folder, drafter=folder)
    with pytest.raises(UserError, match=r"text: \d texts, of which \d are empty; give some to go on from"):
        tree.calibrate(text)


def test_a_name_of_the_hub(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Guards the hub's path, with files as its cache has them: options of loading, the tokenizer, what is kept."""
    revision, home = "0" * 40, tmp_path / "hub" / "models--someone--bytes"
    shutil.copytree(folder, home / "snapshots" / revision)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(revision)
    loading = {"cache_dir": str(tmp_path / "hub"), "local_files_only": True}
    local = DynaTree.from_pretrained(folder, drafter=folder).generate("a tree", max_new_tokens=12)
    hub = DynaTree.from_pretrained("someone/bytes", drafter="someone/bytes", loading=loading)
    found = hub.generate("a tree", max_new_tokens=12)
    assert found.tokens == local.tokens and found.text == local.text and found.rounds == local.rounds
    assert repr(hub) == "DynaTree(bytes, drafter bytes, method dynatree)"
    kept = hub.calibrate(["a tree, a river, a book"])
    caplog.clear()
    again = DynaTree.from_pretrained("someone/bytes", drafter="someone/bytes", loading=loading)
    assert not caplog.text and kept.is_dir() and again.generate("a tree", max_new_tokens=12).tokens == found.tokens
    with pytest.raises(UserError, match="model 'someone/else'"):
        DynaTree.from_pretrained("someone/else", loading=loading)


def test_a_streamer_is_told_what_generate_would_tell_it(folder: Path) -> None:
    """Guards transformers' streamers, which print or queue text."""

    class Told:
        def __init__(self) -> None:
            self.seen: list[list[int]] = []

        def put(self, ids: torch.Tensor) -> None:
            self.seen.append(ids.flatten().tolist())

        def end(self) -> None:
            self.seen.append([])

    tree, told = DynaTree.from_pretrained(folder), Told()
    found = tree.generate([5, 6, 7, 5, 6], max_new_tokens=16)
    assert isinstance(found, Generation)
    list(tree.stream([5, 6, 7, 5, 6], max_new_tokens=16, streamer=told))
    prompt, *commits, end = told.seen
    assert prompt == [5, 6, 7, 5, 6] and end == [] and [token for ids in commits for token in ids] == found.tokens
    left = Told()
    stream = tree.stream([5, 6, 7, 5, 6], max_new_tokens=16, streamer=left)
    next(stream)
    stream.close(), stream.close()
    assert left.seen[-1] == [] and left.seen.count([]) == 1


def test_a_stream_that_is_left_early_leaves_nothing_behind(folder: Path) -> None:
    """Guards the next request after one whose reader has seen enough."""
    tree = DynaTree.from_pretrained(folder)
    fresh = tree.generate([9, 8, 9, 8], max_new_tokens=12)
    next(tree.stream([5, 6, 7], max_new_tokens=50))
    again = tree.generate([9, 8, 9, 8], max_new_tokens=12)
    assert isinstance(fresh, Generation) and isinstance(again, Generation) and again.tokens == fresh.tokens


def test_a_calibration_is_kept_for_the_next_process(
    cache: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Guards against measuring anew in every process, and against costs of other models or of another format."""
    monkeypatch.setattr(calibrations, "CONTEXTS", (8, 16))
    monkeypatch.setattr(calibrations, "OUTPUT_TOKENS", 6)
    model, helper = models.random_model(dtype=torch.float32), models.random_model(dtype=torch.float32)
    with DynaTree(model, drafter=helper) as tree:
        kept = tree.calibrate([[3, 1, 4, 1], [2, 7, 1, 8]])
        # A bar that ends full: each step was told, and none more.
        assert capsys.readouterr().err.rpartition("\r")[2].startswith("100%|")
        measured = tree.generate(PROMPT, max_new_tokens=12)
    assert not caplog.text
    assert kept.is_relative_to(cache) and {path.name for path in kept.iterdir()} == {"costs.json", "steps.json"}
    for fresh in (copy.deepcopy(model), model):
        with DynaTree(fresh, drafter=helper) as again:
            found = again.generate(PROMPT, max_new_tokens=12)
        assert isinstance(found, Generation) and isinstance(measured, Generation) and found.tokens == measured.tokens
        assert found.trace.rounds == measured.trace.rounds
    assert not caplog.text
    with DynaTree(models.random_model(seed=5, dtype=torch.float32), drafter=helper) as other:
        for _ in range(2):
            other.generate(PROMPT, max_new_tokens=2)
        assert caplog.text.count("not calibrated") == 1
    tree = DynaTree.from_pretrained(folder)
    assert tree.calibrate() != kept and len(list((cache / "dynatree" / "calibration").iterdir())) == 2
    before = {path: path.stat().st_mtime_ns for path in (cache / "dynatree").rglob("*.json")}
    assert tree.calibrate().is_relative_to(cache)  # kept, and not measured again
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    with DynaTree(loaded, tree.tokenizer) as same:
        same.calibrate()  # a folder's model that is loaded is the folder's model
    assert {path: path.stat().st_mtime_ns for path in (cache / "dynatree").rglob("*.json")} == before
    with pytest.raises(UserError, match="method autoregressive makes no use of it"):
        DynaTree(model, method="autoregressive").calibrate()


def test_a_calibration_of_an_older_version_stops_nobody(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards who has measured and then upgraded: costs of old are not taken, and are measured again when asked."""
    fresh = DynaTree.from_pretrained(folder)
    home = calibrations.folder(fresh._loaded.fingerprints, fresh._machine)
    models.calibration().write(home)
    (home / "steps.json").write_text('{"version": 1}')
    with pytest.raises(UserError, match="of version 1"):
        DynaTree.from_pretrained(folder, calibration=home)
    tree = DynaTree.from_pretrained(folder)
    assert "of version 1" in caplog.text and "measure it again" in caplog.text
    generated = tree.generate(PROMPT, max_new_tokens=2)
    assert isinstance(generated, Generation) and len(generated.tokens) == 2
    monkeypatch.setattr(calibrations, "VERSION", -1)
    assert calibrations.folder(fresh._loaded.fingerprints, fresh._machine) != home
    # Beside the models, as the workflow has it, where an upgrade meets it first.
    caplog.clear()
    monkeypatch.setattr(calibrations, "calibration_beside", lambda folders, dtype: home)
    assert DynaTree.from_pretrained(folder).calibrate() != home and "of version 1" in caplog.text


@pytest.mark.parametrize("name", ["costs.json", "steps.json"])
def test_a_damaged_calibration_that_nobody_named_stops_nobody(
    cache: Path, folder: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Guards who ran out of disk: what is kept in halves can be measured again, by `calibrate` itself."""
    fresh = DynaTree.from_pretrained(folder)
    home = calibrations.folder(fresh._loaded.fingerprints, fresh._machine)
    models.calibration().write(home)
    (home / name).write_text('{"costs"')
    tree = DynaTree.from_pretrained(folder)
    assert str(home) in caplog.text
    assert tree.generate(PROMPT, max_new_tokens=2).tokens
    assert tree.calibrate() == home
    caplog.clear()
    assert DynaTree.from_pretrained(folder).calibrate() == home and not caplog.text


def test_costs_of_files_are_said_to_be_of_files(tmp_path: Path) -> None:
    """Guards who has a model loaded and measured its folder: measuring again would give the same."""
    models.calibration().write(tmp_path)
    with pytest.raises(UserError, match="is for models that are given as folders"):
        DynaTree(models.random_model(), calibration=tmp_path)


def test_a_table_of_successors_tells_drafters_apart(folder: Path, tmp_path: Path) -> None:
    """Guards rates of a table that is no longer there."""
    found = []
    for tables in (0, 1, 2):
        copied = tmp_path / str(tables)
        shutil.copytree(folder, copied)
        if tables:
            size = int(files.read_json(folder / "config.json")["vocab_size"])
            ids = np.zeros((size, 1), dtype=np.int64)
            successors.save(successors.Successors(ids, ids - np.float32(tables)), copied / files.SUCCESSORS)
        model = AutoModelForCausalLM.from_pretrained(folder)
        with DynaTree(model, require_tokenizer(folder), drafter=copied) as tree:
            found.append(tree._loaded.fingerprints["drafter"])
    assert len(set(found)) == 3


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 28_311_552, 2**31 + 7])
def test_the_values_that_tell_weights_apart_are_there(count: int) -> None:
    """Guards against places beyond the end of a large embedding, where 32-bit floats leave out whole numbers."""
    places = sampled(count)
    assert len(set(places)) == len(places) == min(64, count)
    assert places == sorted(places) and (places[0], places[-1]) == (0, count - 1)


def encoder_decoder() -> PreTrainedModel:
    shape = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model: PreTrainedModel = T5ForConditionalGeneration(T5Config(**shape, decoder_start_token_id=0))
    return model


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"model": encoder_decoder}, "cannot verify a token tree: it is an encoder-decoder"),
        ({"method": "magic"}, "method: no 'magic'; choose one of autoregressive, transformers"),
        ({"depht": 4}, "depht: method dynatree has no such parameter; it has depth, branch, threshold, budget"),
        ({"branch": 0}, "method dynatree: branch"),
        ({"method": "linear"}, "drafter: method linear needs one"),
        ({"dtype": "float16"}, "dtype: 'float16', but the model that was given is float64"),
        ({"drafter": lambda: models.random_model(vocab_size=99)}, "vocabulary of 99"),
        ({"drafter": lambda: models.random_model().to("meta")}, "drafter: it is on meta, the model on cpu; move one"),
        ({"model": "./nowhere"}, "model: no folder './nowhere'"),
        ({"model": 3}, "model: 3 is no model; give one of transformers, a folder or a hub name"),
        ({"calibration": "nowhere"}, "calibration nowhere: .*; measure it again"),
    ],
)
def test_bad_input_is_one_clear_line(given: dict[str, Any], complaint: str) -> None:
    """Guards against tracebacks from deep in a model, before any expensive work."""
    values = {key: value() if callable(value) else value for key, value in given.items()}
    model = values.pop("model", None) or models.random_model()
    with pytest.raises(UserError, match=complaint):
        DynaTree(model, **values)


@pytest.mark.parametrize(
    ("prompt", "options", "complaint"),
    [
        ([], {}, "prompt: it is empty"),
        ("text", {}, "prompt: the model has no tokenizer"),
        ([[3], []], {}, "prompt: it is empty"),
        ([1] * models.CONTEXT, {}, "context of 128; shorten the prompt"),
        ([3], {"max_new_tokens": 0}, "max_new_tokens: Input should be greater"),
        ([3], {"max_new_tokens": None}, "max_new_tokens: Input should be a valid integer.*got None"),
        ([3], {"max_new_tokens": "few"}, "max_new_tokens: Input should be a valid integer.*got 'few'"),
        ([3], {"repetition_penalty": 0}, "repetition_penalty: Input should be greater"),
        ([3], {"temprature": 1.0}, "temprature: Extra inputs are not permitted.*options are max_new_tokens"),
        ([3], {"temperature": 0.7}, "temperature 0.7 is for sampling, and decoding is greedy; add do_sample=True"),
        ([3], {"do_sample": True, "top_p": 0}, "top_p: Input should be greater than 0"),
        ([3], {"do_sample": True, "seed": 0.5}, "seed: Input should be a valid integer"),
        ([3], {"num_return_sequences": 2}, "num_return_sequences: 2 greedy outputs would be equal"),
        (
            [3],
            {"num_return_sequences": 2, "do_sample": True, "temperature": 0},
            "num_return_sequences: 2 greedy outputs",
        ),
        ([3], {"num_return_sequences": 0, "do_sample": True}, "num_return_sequences: 0; give a whole number"),
        ([3], {"num_return_sequences": 2, "do_sample": True, "request_key": 1}, "request_key: with num_return"),
        ([[3], [4]], {"do_sample": True, "request_key": (1, 2, 3)}, "request_key: 3 keys for 2 prompts"),
        ({"input_ids": [[3]]}, {}, "prompt: a mapping; give its `input_ids`"),
        (None, {}, "prompt: NoneType; give a text, token ids, or chat messages"),
        ([3, 4.9], {}, "prompt: 4.9 among token ids; give whole numbers"),
        ([3, "x"], {}, "prompt: 'x' among token ids"),
        ([*torch.tensor([3, 1])], {}, r"prompt: a tensor of shape \[\]; this takes one prompt"),
    ],
)
def test_bad_requests_are_one_clear_line(prompt: Any, options: dict[str, Any], complaint: str) -> None:
    """Guards against an error in the middle of a request, and options that are passed over in silence."""
    model = models.random_model()
    with DynaTree(model) as tree, pytest.raises(UserError, match=complaint):
        tree.generate(prompt, **{"max_new_tokens": 4, **options})


@pytest.mark.parametrize("method", ["dynatree", "linear", "autoregressive"])
def test_the_same_seed_gives_the_same_text_whatever_the_method(method: str) -> None:
    """Guards sampling from Python: alone, in lists, several of a prompt, streamed."""
    model, helper = models.random_model(), models.random_model()
    asked: dict[str, Any] = {"max_new_tokens": 16, "do_sample": True, "temperature": 0.9, "seed": 3}
    with DynaTree(models.random_model(), method="autoregressive") as plain:
        wanted = [plain.generate(PROMPT, request_key=key, **asked).tokens for key in range(3)]
    assert len(set(map(tuple, wanted))) == 3
    with DynaTree(model, drafter=helper, method=method) as tree:
        assert tree.generate(PROMPT, **asked).tokens == wanted[0]
        assert [found.tokens for found in tree.generate([PROMPT, PROMPT], **asked)] == [wanted[0]] * 2
        assert [found.tokens for found in tree.generate(PROMPT, num_return_sequences=3, **asked)] == wanted
        assert len(tree.generate(PROMPT, 4, num_return_sequences=1)) == 1
        several = tree.generate([PROMPT, [7]], num_return_sequences=2, **asked)
        assert [found.tokens for found in several[:2]] == wanted[:2] and len(several) == 4
        keyed = tree.generate([PROMPT, PROMPT], request_key=(2, 1), **asked)
        assert [found.tokens for found in keyed] == [wanted[2], wanted[1]]
        stream = tree.stream(PROMPT, request_key=1, **asked)
        assert len(list(stream)) and stream.generation.tokens == wanted[1]
        assert tree.generate(PROMPT, 16, do_sample=True, temperature=0).tokens == tree.generate(PROMPT, 16).tokens


def test_importing_the_package_costs_nothing_heavy() -> None:
    """Guards scripts and shells that import the name alone: neither torch nor transformers before the first use; and
    commands that decode, which need nothing that fits curves."""
    heavy = "print(sorted({'torch', 'pydantic', 'sklearn', 'pandas', 'altair'} & set(sys.modules)))"
    code = f"import sys, dynatree; {heavy}; dynatree.DynaTree; {heavy}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "['pydantic', 'torch']"]
    with pytest.raises(AttributeError, match="no attribute 'Dynatree'"):
        _ = __import__("dynatree").Dynatree


@pytest.fixture(scope="module")
def reading(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drafter that reads the model in `folder`, as a folder."""
    target, made = checkpoint.read(folder), tmp_path_factory.mktemp("models") / "reading"
    drafter = shrink(target, [1], 1.0).eval()
    drafter.config.update({"draft_reads": [1, 2], "draft_window": 16})
    reads = models.fusion(2, drafter.config.hidden_size)
    model_sources.save(drafter, require_tokenizer(folder), made, {}, list(range(60, 200)), reads)
    return made


@pytest.mark.parametrize("dtype", ["float32", "int8", "bfloat16"])
@pytest.mark.parametrize("method", ["fixed_tree", "dynatree"])
def test_a_folder_with_a_drafter_that_reads_is_a_drafter(folder: Path, reading: Path, method: str, dtype: str) -> None:
    """Guards the way from a folder to drafts, for a model that is loaded already, too, and its being put back."""
    prompt, budget = "The aardwolf is", {"budget": 20} if method == "dynatree" else {}
    with DynaTree(folder, method="autoregressive", dtype=dtype) as plain:
        wanted = plain.generate(prompt, max_new_tokens=40).tokens
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="float32" if dtype == "int8" else dtype)
    for given, tokenizer in ((folder, None), (loaded, require_tokenizer(folder))):
        with DynaTree(given, tokenizer, drafter=reading, method=method, dtype=dtype, **budget) as tree:
            found = tree.generate(prompt, max_new_tokens=40)
        assert dtype == "bfloat16" or found.tokens == wanted
        assert found.trace.draft_forwards > 0
    assert not any(layer._forward_hooks for layer in loaded.modules())


def test_a_drafter_that_reads_is_no_target_and_known_by_its_fusion(reading: Path, tmp_path: Path) -> None:
    """Guards against text of half a model, and against the costs and rates of another fusion."""
    for wrong in (DynaTree, checkpoint.read, lambda folder: draft_gguf.written(folder, tmp_path)):
        with pytest.raises(UserError, match="reads its target's states"):
            wrong(reading)
    other = tmp_path / "other"
    shutil.copytree(reading, other)
    assert checkpoint.fingerprint(other) == checkpoint.fingerprint(reading)
    width = checkpoint.read(other, reads=True).config.hidden_size
    fusion.save(fusion.Fusion(2, width, 1e-5), other)
    assert checkpoint.fingerprint(other) != checkpoint.fingerprint(reading)
    (other / files.FUSION).unlink()
    with pytest.raises(UserError, match="which a drafter with draft_reads in its config has"):
        checkpoint.load_drafter(other)
