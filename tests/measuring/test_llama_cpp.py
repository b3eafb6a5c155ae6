"""llama.cpp beside the decoders here: the drafter's file, what stays of a draft, samplers. With the library if it is
installed; what needs none runs on a fake of it.
"""

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from dynatree.data import model_sources
from dynatree.engine import checkpoint
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.measuring import audit, draft_gguf, llama_cpp
from dynatree.measuring.draft_gguf import DraftFile
from tests import models

WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPE = {**WIDTHS, "num_hidden_layers": 2, "max_position_embeddings": 512, "tie_word_embeddings": True}
DRAFTED = [9, 3, 250, 77, 31, 8, 100, 4]


def saved(folder: Path, architecture: str = "llama", vocabulary: Sequence[int] | None = DRAFTED) -> Path:
    """A random drafter over this draft vocabulary."""
    source = {"kind": "random", "architecture": architecture, "configuration": SHAPE}
    model, tokenizer, origin = model_sources._random(model_sources.parse(source), 0)
    model_sources.save(model, tokenizer, folder, origin, vocabulary)
    return folder


def dequantised(path: Path) -> dict[str, torch.Tensor]:
    return {
        tensor.name: torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
        for tensor in gguf.GGUFReader(path).tensors
    }


def as_written(folder: Path, file: DraftFile) -> LanguageModel:
    """The model in `folder` with the weights of its file, in which they are rounded."""
    model, found = checkpoint.read(folder, torch.float32), dequantised(file.path)
    head = found.pop("token_embd.weight")
    if len(head) == model.config.vocab_size:
        model.get_input_embeddings().weight.data = model.get_output_embeddings().weight.data = head
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, weight in model.state_dict().items():
        known = names.get_name(name, (".weight",))
        if known in found:
            given = found.pop(known)
            if known.endswith(("attn_q.weight", "attn_k.weight")):
                heads = 4 if "attn_q" in known else 2
                given = given.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(given.shape)
            weight.copy_(given)
    assert not found
    return LanguageModel(model, name="written")


def test_the_drafter_s_file_holds_its_weights_and_its_vocabulary_alone(tmp_path: Path) -> None:
    """Guards against rows of other tokens, a layer that is lost, and a file that is written at every load."""
    folder = saved(tmp_path / "drafter")
    file = draft_gguf.written(folder, tmp_path / "cache")
    head = checkpoint.read(folder).get_output_embeddings().weight
    found = dequantised(file.path)
    assert file.vocabulary.tolist() == DRAFTED and file.window is None and file.embedding.shape == (257, 32)
    torch.testing.assert_close(found["token_embd.weight"], head[DRAFTED].detach(), atol=0.01, rtol=0)
    down = checkpoint.read(folder).state_dict()["model.layers.1.mlp.down_proj.weight"]
    torch.testing.assert_close(found["blk.1.ffn_down.weight"], down, atol=0.01, rtol=0)
    assert len(found) == 2 * 9 + 2
    when = file.path.stat().st_mtime_ns
    assert draft_gguf.written(folder, tmp_path / "cache").path.stat().st_mtime_ns == when
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [file.path.name]


def test_drafters_that_llama_cpp_would_read_wrongly_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a file of another architecture, or of rows that no quantised block fits."""
    with pytest.raises(UserError, match=r"'gpt_neox'.*leave benchmark\.llama_cpp\.draft out"):
        draft_gguf.written(saved(tmp_path / "neox", "gpt_neox"), tmp_path)
    monkeypatch.setitem(SHAPE, "intermediate_size", 48)
    with pytest.raises(UserError, match="rows of 48"):
        draft_gguf.written(saved(tmp_path / "narrow"), tmp_path)
    assert not list(tmp_path.glob("*.gguf"))


class Context:
    """Keys in the place of llama.cpp's: what was fed at each position; the likeliest token depends on all of it."""

    def __init__(self, rows: int):
        self.held: list[float] = []
        self.rows, self.fed = rows, 0

    def kv_cache_seq_rm(self, sequence: int, first: int, last: int) -> None:
        assert (sequence, last) == (0, -1)
        del self.held[first:]

    def decode(self, batch: Any) -> None:
        raw = batch.batch
        assert [raw.pos[place] for place in range(raw.n_tokens)] == [
            *range(len(self.held), len(self.held) + raw.n_tokens)
        ]
        assert [raw.n_seq_id[place] for place in range(raw.n_tokens)] == [1] * raw.n_tokens
        self.held += [raw.embd[2 * place] for place in range(raw.n_tokens)]
        self.fed += raw.n_tokens

    def get_logits_ith(self, place: int) -> Any:
        assert place == -1
        logits = [0.0] * self.rows
        logits[likeliest(self.held, self.rows)] = 1.0
        return pointer((ctypes.c_float * self.rows)(*logits))


def likeliest(text: Sequence[float], rows: int) -> int:
    return int(sum((place + 1) * token for place, token in enumerate(text))) % rows


def pointer(array: Any) -> Any:
    return ctypes.cast(array, ctypes.POINTER(array._type_))


def batch(n_tokens: int, embd: int, n_seq_max: int) -> Any:
    ids = (ctypes.POINTER(ctypes.c_int32) * n_tokens)(*(ctypes.pointer(ctypes.c_int32()) for _ in range(n_tokens)))
    arrays = {"pos": ctypes.c_int32, "n_seq_id": ctypes.c_int32, "logits": ctypes.c_int8}
    raw = {name: pointer((kind * n_tokens)()) for name, kind in arrays.items()}
    return SimpleNamespace(
        batch=SimpleNamespace(embd=pointer((ctypes.c_float * (n_tokens * embd))()), seq_id=ids, n_tokens=0, **raw)
    )


@pytest.mark.parametrize("window", [None, 6])
def test_what_stays_of_a_draft_is_what_was_accepted(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    """Guards against keys of rejected tokens, and against a text that is fed afresh in every round."""
    rows, context = 7, Context(7)
    monkeypatch.setattr(llama_cpp, "_loaded", lambda *_, **__: SimpleNamespace(_ctx=context, n_batch=4))
    library = SimpleNamespace(_internals=SimpleNamespace(LlamaBatch=batch))
    monkeypatch.setattr(llama_cpp, "_library", lambda: library)
    embedding = np.arange(20, dtype=np.float32).repeat(2).reshape(20, 2)
    vocabulary = np.arange(10, 17)

    def expected(text: list[int], count: int) -> list[int]:
        for _ in range(count):
            text = [*text, 10 + likeliest(text, rows)]
        return text[-count:]

    engine = llama_cpp.DraftEngine(DraftFile(Path("none"), vocabulary, embedding, window), 64, 1)
    chance, begin = np.random.default_rng(0), 0
    text = chance.integers(0, 20, 5).tolist()
    for _ in range(12):
        begin = llama_cpp.first_seen(window, len(text), begin)
        found = engine.drafted(np.array(text, dtype=np.intc), 3).tolist()
        assert found == expected(text[begin:], 3)
        accepted = int(chance.integers(0, 4))
        text += [*found[:accepted], int(chance.integers(0, 10))]
    # The prompt, and of each of the 11 rounds between: the target's own token and what of the draft was never fed.
    assert context.fed < 5 + 12 * 2 + 12 * 2 if window is None else context.fed > 5 + 12 * 2
    engine.reset()
    assert engine.drafted(np.array([1, 2], dtype=np.intc), 2).tolist() == expected([1, 2], 2)


def test_the_engine_is_asked_for_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a traceback where it is not installed, a model without its file, and other processors."""
    source = {"kind": "random", "architecture": "llama", "configuration": SHAPE}
    with pytest.raises(UserError, match="kind 'random' has no GGUF file"):
        model_sources.gguf_file(model_sources.parse(source), tmp_path)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "llama_cpp", None)
        with pytest.raises(UserError, match="make EXTRAS=dev,bench install"):
            llama_cpp.Engine(tmp_path, 8, 1)
    llama_cpp.check(models.wanted(5, repetition_penalty=1.2, do_sample=True))
    with pytest.raises(UserError, match=r"no_repeat_ngram_size=2.*knows repetition_penalty alone"):
        llama_cpp.check(models.wanted(5, no_repeat_ngram_size=2))
    monkeypatch.setattr(llama_cpp, "Engine", lambda *_: None)
    with pytest.raises(UserError, match="takes a drafter, and none is given"):
        llama_cpp.Ways(tmp_path, None, tmp_path, {"draft": {"draft_tokens": [1]}}, 8, 1)


@pytest.fixture
def engines(tmp_path: Path) -> tuple[Path, DraftFile]:
    """A model over all of its tokens as a file, which is a target, too."""
    pytest.importorskip("llama_cpp")
    folder = saved(tmp_path / "model", vocabulary=None)
    return folder, draft_gguf.written(folder, tmp_path / "cache")


def test_llama_cpp_drafts_what_the_drafter_does(tmp_path: Path) -> None:
    """Guards against rotary positions in the other order, and tokens of other rows."""
    pytest.importorskip("llama_cpp")
    folder = saved(tmp_path / "drafter")
    file = draft_gguf.written(folder, tmp_path / "cache")
    model, engine = as_written(folder, file), llama_cpp.DraftEngine(file, 64, 1)
    text = [5, 200, 17, 3, 9, 42]
    for _ in range(3):
        found, seen = engine.drafted(np.array(text, dtype=np.intc), 5).tolist(), [*text]
        for _ in range(5):
            logits = model.model(torch.tensor([seen])).logits[0, -1]
            seen.append(DRAFTED[int(logits[DRAFTED].argmax())])
        assert found == seen[-5:]
        text += [*found[:2], 11]


@pytest.mark.parametrize(
    "given", [{}, {"repetition_penalty": 1.4}, {"do_sample": True, "top_k": 1, "temperature": 0.8}]
)
@pytest.mark.parametrize("way", ["plain", "lookup", "draft"])
def test_every_way_gives_the_tokens_of_the_weights(engines: Any, given: dict[str, Any], way: str) -> None:
    """Guards against a penalty that passes over the prompt or ends with a window, and drafts that change the text.

    llama.cpp rounds what goes into a product, so that near ties turn out otherwise.
    """
    if b"AMX_INT8 = 1" in pytest.importorskip("llama_cpp").llama_print_system_info():
        pytest.skip("llama.cpp's AMX kernels compute rows of 32 wrongly, which no model of use has")
    folder, file = engines
    target, asked = as_written(folder, file), models.wanted(60, **given)
    prompt = [*range(100, 180), 17, 3]
    greedy = asked.model_copy(update={"do_sample": False, "top_k": 0, "temperature": 1.0})
    engine = llama_cpp.Engine(file.path, 150, 1, way != "plain")
    decoders = {"plain": llama_cpp.Decoder(engine), "lookup": llama_cpp.Decoder(engine, engine.lookup(3, 2))}
    draft = llama_cpp.DraftEngine(file, 150, 1)
    decoders["draft"] = llama_cpp.Decoder(engine, lambda text: draft.drafted(text, 4), draft.reset)
    first, second = (decoders[way].decode(prompt, asked).output for _ in range(2))
    assert first == second and len(first) == 60
    audit.audit(target, prompt, first, 0.05, greedy)


def test_draws_depend_on_the_request_and_forwards_are_timed(engines: Any) -> None:
    """Guards against one seed for all prompts, and a curve of fewer forwards than were asked for."""
    engine = llama_cpp.Engine(engines[1].path, 330, 1)
    decoder = llama_cpp.Decoder(engine)
    drawn = [decoder.decode([1, 2, 3], models.wanted(20, do_sample=True).keyed([key])).output for key in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]
    curve = engine.forwards(sizes=(1, 4, 64), repeats=2)
    assert curve.contexts == [256] and curve.tokens == [1, 4, 64] and all(s > 0 for s in curve.seconds[0])
