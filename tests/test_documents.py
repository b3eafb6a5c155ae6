"""What the documents tell readers to type works on a tiny pair, and every link and anchor leads somewhere."""

import io
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch
import yaml

from dynatree import decoding, files, plugins
from dynatree.commands import cli
from dynatree.data import model_sources
from dynatree.measuring import loading
from dynatree.policies import PolicySettings
from dynatree.study import params
from dynatree.tables.schema import APART
from tests.figures import tables as synthetic
from tests.models import wanted
from tests.workflow.world import ROOT

EXAMPLES = ROOT / "examples"
# All but the transcripts of drills, whose commands their drills have run.
DOCUMENTS = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("drafters/*.md")} - {*ROOT.glob("docs/drills/*.md")}
)
# By guide: the room and the name of the plug-in that it writes.
PLUGINS = {"own_policy": ("policies", "tapering"), "own_drafting": ("drafting", "followers")}
GUIDES, TRANSLATED = ROOT / "docs/guides", ROOT / "README.zh.md"
# No commands; a block without a language holds commands.
OTHER = ("text", "python", "yaml", "math")
# A model and training sizes that take seconds; what a reader types is otherwise run as it stands.
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "max_position_embeddings": 2048, "tie_word_embeddings": True}
TINY = {
    "distil": "layers=[0] vocabulary=200 tokens=256 length=16 dtype=float32 labels.tokens=300 labels.rows=4 "
    "labels.prompt_tokens=8 labels.new_tokens=8",
}
# Of what a calibration measures.
FEW = ["--repeats", "1", "--output-tokens", "16"]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
WORKFLOW = "runs the job graph: tests/workflow does, on the tiny pair"
DRILL = "needs a finished run: tests/drills/drill_experiments.py"
CLUSTER = "needs a cluster: docs/drills/slurm.md has a run of it"
LARGE = "dry runs of thousands of jobs: tests/workflow/test_forecast.py does smaller ones"
PUBLISHED = "reads published/: tests/test_published.py"
SETUP = "sets up an environment from the registry"
SKIPPED = {
    "make all": SETUP,
    "make demo": SETUP,
    "make test": SETUP,
    "make fast": SETUP,
    "make check": SETUP,
    "make install": SETUP,
    "make quick": WORKFLOW,
    "make benchmark": WORKFLOW,
    "make prune": WORKFLOW,
    "source .venv/bin/activate": SETUP,
    "snakemake --cores 1 all": WORKFLOW,
    "dvc commit --force": WORKFLOW,
    "snakemake --cores 1 all && dvc commit --force": WORKFLOW,
    "snakemake --cores 1 --forcerun calibrate generate timeline memory drafter_report -- all": WORKFLOW,
    "snakemake --cores 1 --keep-going all; snakemake --cores 1 partial": WORKFLOW,
    "snakemake --workflow-profile profiles/slurm all": CLUSTER,
    "dvc metrics diff": WORKFLOW,
    "dvc repro": WORKFLOW,
    "dvc repro --force --no-run-cache": WORKFLOW,
    "dvc exp run -S methods.dynatree.threshold=0.1": WORKFLOW,
    "dvc checkout && make touch": WORKFLOW,
    "dvc params diff": DRILL,
    "dvc plots diff --out build/plots": DRILL,
    "dvc exp run --queue -S methods.dynatree.threshold=0.2": DRILL,
    "dvc exp run --run-all": DRILL,
    "dvc exp show --only-changed": DRILL,
    "python workflow/scripts/enlarge.py --out build/large --pairs 12 --datasets 6 --prompts 200": LARGE,
    "python workflow/scripts/forecast.py --root build/large --nodes 1 --nodes 12 --nodes 48 --nodes 200": LARGE,
    "git clone --quiet . ../study/PAIR": CLUSTER,
    "cd ../study/PAIR": CLUSTER,
    'dvc cache dir --local "$OLDPWD/.dvc/cache"': CLUSTER,
    "make pull": PUBLISHED,
    "make show SCALE=study": PUBLISHED,
    "python workflow/scripts/draw.py --tables published/laptop/results --figure datasets --out build": PUBLISHED,
    "python -m pytest tests/policies -k budget": "a test within a test",
}


def blocks(document: Path) -> list[tuple[str, str]]:
    """(language, content) of the fenced blocks."""
    text = document.read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)


def commands(document: Path) -> list[str]:
    """Lines of the blocks that hold commands: continued lines joined, comments taken off."""
    found = []
    for language, content in blocks(document):
        if language not in OTHER:
            for line in content.replace("\\\n", " ").splitlines():
                words = re.sub(r"\s+#.*", "", line)
                found += [" ".join(words.split())] if words.strip() else []
    return found


ALL = [(document.relative_to(ROOT).as_posix(), line) for document in DOCUMENTS for line in commands(document)]


def test_every_command_is_run_or_skipped_for_a_reason() -> None:
    """Guards against a command that no test knows, and against reasons for commands that are gone."""
    written = {line for _, line in ALL}
    unknown = {line for line in written - set(SKIPPED) if not line.startswith(("dynatree ", "sed -i "))}
    assert not unknown
    assert not set(SKIPPED) - written


@pytest.mark.parametrize("kind", ["schema", "parameters"])
def test_references_are_what_the_code_says(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a reference of tables or keys that a change left behind."""
    cli.main(["report", f"--{kind}"])
    assert (ROOT / "docs" / f"{kind}.md").read_text(encoding="utf-8") == capsys.readouterr().out


def test_the_schema_for_editors_is_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against an editor that refuses a new key."""
    cli.main(["report", "--params-schema"])
    first = (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines()[0]
    schema = ROOT / first.removeprefix("# yaml-language-server: $schema=")
    assert schema.read_text(encoding="utf-8") == capsys.readouterr().out, "make params_schema"


def test_what_dvc_said_is_of_the_transcript() -> None:
    """Guards against numbers of DVC's output that no run printed."""
    said = next(text for kind, text in blocks(ROOT / "docs/workflow/dvc.md") if kind == "text" and "dvc exp" in text)
    transcript = (ROOT / "docs/drills/experiments.md").read_text(encoding="utf-8").splitlines()
    assert {line for line in said.splitlines() if line} <= set(transcript)


# Words that only this project would have, for which the field has its own.
BANNED = re.compile(
    r"plain steps?\b|plain decoding|our plain loop|\bstands? in for\b|\bbehind (a |its )?(prompt|context)s? of\b"
    r"|\bbehind [\d,]+ tokens|\brivals?\b|one gesture|faster and slower seconds|\bresolved (speedup|gain|difference)",
    re.IGNORECASE,
)


def test_words_are_the_field_s() -> None:
    """Guards against a private dialect in documents, docstrings and what commands print."""
    sources = [*ROOT.glob("dynatree/**/*.py"), *ROOT.glob("workflow/**/*.*"), *EXAMPLES.iterdir()]
    files = [*DOCUMENTS, ROOT / "params.yaml", ROOT / "Makefile", *(path for path in sources if path.suffix != ".pyc")]
    found = {
        f"{path.relative_to(ROOT)}: {words[0]}"
        for path in files
        if path.is_file()
        for words in BANNED.finditer(" ".join(path.read_text(encoding="utf-8").split()))
    }
    assert not found


def test_make_targets_and_scripts_exist() -> None:
    """Guards against targets that were renamed, in commands and in running text."""
    targets = set(re.findall(r"^([\w.]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for document in DOCUMENTS:
        named = set(re.findall(r"(?:^|`)make (?:\w+=\S+ )*([\w.]+)`?", document.read_text(encoding="utf-8"), re.M))
        assert not named - targets, document.name


def test_edits_of_the_parameters_change_something() -> None:
    """Guards against a `sed` or a `-S` for a key or value that params.yaml no longer has."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    edits = [line for _, line in ALL if line.startswith("sed -i ")]
    assert edits
    for line in edits:
        pattern, file = shlex.split(line)[2:]
        found, replacement = re.fullmatch(r"s/(.+)/(.+)/", pattern).groups()
        assert file == "params.yaml" and found in text and found != replacement
    values = yaml.safe_load(text)
    for _, line in ALL:
        for key in re.findall(r"-S ([\w.]+)=", line):
            section = values
            for part in key.split("."):
                assert part in section, line
                section = section[part]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the documents name: models, texts, and what the guides add to the checkout."""
    home = tmp_path_factory.mktemp("documents")
    source = model_sources.parse({"kind": "random", "architecture": "llama", "configuration": SHAPE})
    model_sources.build(source, home / "my-model", home, seed=0)
    config = home / "my-model" / "tokenizer_config.json"
    files.write_json(config, {**files.read_json(config), "chat_template": TEMPLATE, "pad_token": "<end>"})
    for name in ("my-drafter", "models/smollm2", "models/smollm2-drafter"):
        shutil.copytree(home / "my-model", home / name)
    (home / "results").mkdir()
    shutil.copy(ROOT / "results/pace.json", home / "results")
    (home / "corpus").mkdir()
    (home / "letters").mkdir()
    for name in ("essay.txt", "essays.txt", "unseen.txt", "corpus/a.txt", "corpus/b.txt", "letters/a.txt"):
        number = len(name)
        # A few sentences where each token costs seconds; one text is to be short.
        most = {"essay.txt": 10, "unseen.txt": 30}.get(name, 100)
        sentences = [f"The tree {(place * number) % 17} grows by the river {place}." for place in range(most)]
        (home / name).write_text(" ".join(sentences), encoding="utf-8")
    names = ("own_models", "own_text", "own_policy", "own_drafting")
    guides = {name: blocks(GUIDES / f"{name}.md") for name in names}
    entries = [yaml.safe_load(text) for guide in guides.values() for language, text in guide if language == "yaml"]
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for entry in entries:
        for key, value in entry.items():
            values[key] |= value
    (home / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    for guide, (_, name) in PLUGINS.items():
        (code,) = (content for language, content in guides[guide] if language == "python")
        (home / f"{name}.py").write_text(code, encoding="utf-8")
    return home


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In that folder, with the guides' policy and drafter among the plug-ins."""
    import dynatree.drafting
    import dynatree.policies

    monkeypatch.chdir(world)
    monkeypatch.setattr(cli, "__file__", str(world / "dynatree" / "commands" / "cli.py"))  # hides the checkout's models
    for package in (dynatree.policies, dynatree.drafting):
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(world)])
    names = plugins.names
    ours = PLUGINS.values()
    monkeypatch.setattr(
        plugins, "names", lambda folder: names(folder) + [name for room, name in ours if room == folder]
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "cache"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is a tree?\n/stats\n"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# But for the translated README, whose commands are the README's.
RUN = [
    pytest.param(line, id=f"{name}: {line[:60]}")
    for name, line in ALL
    if line.startswith("dynatree ") and name != TRANSLATED.name
]


@pytest.mark.slow
@pytest.mark.parametrize("line", RUN)
def test_a_command_works(world: Path, here: None, capsys: pytest.CaptureFixture[str], line: str) -> None:
    """Guards against options, names and files in documents that no longer exist."""
    arguments = shlex.split(line)[1:]
    if "cuda" in arguments:
        pytest.skip("needs a GPU")
    if "--part" in arguments:
        pytest.skip("needs the real target: a part is good for its own alone (tests/distil/test_shipped.py)")
    if arguments[0] == "distil":
        tiny = TINY["distil"].split() + (["reads=[1,3]", "tokens=0"] if "reads=" in line else [])
        given = [part for change in tiny for part in ("--set", change)]
        arguments += [*given, "--threads", "1", "--work", str(world / "work")]
    elif arguments[0] == "replay":
        for name, table in synthetic.make().items():
            Path("results").mkdir(exist_ok=True)
            parquet.write_table(table, f"results/{name}.parquet")
    elif arguments[0] not in ("report", "estimate"):
        arguments += ["--threads", "1"]
    if arguments[0] == "calibrate" and "--text" in arguments:
        arguments += FEW
    if "--calibration" in arguments and not Path("my-costs").is_dir():
        pair = ["--target", "my-model", "--drafter", "my-drafter", "--text", "essays.txt", "--out", "my-costs"]
        cli.main(["calibrate", *pair, "--threads", "1", *FEW])
    cli.main(arguments)
    out, err = capsys.readouterr()
    assert out or arguments[0] in ("distil", "calibrate")
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "docs/python.md"])
def test_the_python_of_a_document_runs(document: str, here: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against an interface in a document that the library no longer has."""
    codes = [content for language, content in blocks(ROOT / document) if language == "python"]
    assert codes
    exec(compile("\n".join(codes), document, "exec"), {})
    assert "rounds" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_a_script_of_the_examples_runs(
    script: str, here: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the scripts that readers copy: short, and the same tokens as transformers' generate."""
    assert len((EXAMPLES / script).read_text(encoding="utf-8").splitlines()) <= 20
    monkeypatch.setattr(sys, "argv", [script])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert re.search("the same tokens as .*: True", capsys.readouterr().out)


@pytest.mark.slow
def test_the_notebook_runs_and_holds_no_outputs(here: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against cells that no longer work in their order, and outputs of somebody's machine."""
    cells = files.read_json(EXAMPLES / "quickstart.ipynb")["cells"]
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in codes)
    values: dict[str, Any] = {}
    for cell in codes[:-1]:
        exec("".join(cell["source"]), values)
    *statements, last = codes[-1]["source"]
    exec("".join(statements), values)
    assert "vconcat" in eval(last, values).to_json()
    assert "the same tokens: True" in capsys.readouterr().out


@pytest.mark.slow
def test_the_guide_s_policy_is_exact_and_tapers(world: Path, here: None) -> None:
    """Guards against a policy in the guide that the contract has left behind."""
    module = plugins.load("policies", "tapering")
    assert issubclass(module.Policy, PolicySettings)
    folders = {"target": Path("my-model"), "drafter": Path("my-drafter")}
    knobs = {"policy": "tapering", "drafting": "model", "depth": 4, "branch": 3, "budget": 64}
    (target, _), decoder = loading.load(folders, None, "speculative", knobs, "float64", "cpu")
    plain = decoding.build(target, None, "autoregressive", {})
    trace = decoder.decode([5, 6, 7], wanted(30))
    assert trace.output == plain.decode([5, 6, 7], wanted(30)).output
    parents = trace.rounds[0].tree["parents"]
    depths = [0] * len(parents)
    for node, parent in enumerate(parents[1:], start=1):
        depths[node] = depths[parent] + 1
    children = [{parents.count(node) for node in range(len(parents)) if depths[node] == d} for d in range(4)]
    assert children == [{3}, {2}, {1}, {1}]


@pytest.mark.slow
def test_the_guide_s_drafter_is_exact_and_is_right_in_loops(world: Path, here: None) -> None:
    """Guards against a drafter in the guide that the contract has left behind."""
    knobs = {"policy": "chain", "drafting": "followers", "draft_tokens": 4}
    (target, _), decoder = loading.load({"target": Path("my-model")}, None, "speculative", knobs, "float64", "cpu")
    plain = decoding.build(target, None, "autoregressive", {})
    prompt = [5, 6, 7, 8] * 3
    trace = decoder.decode(prompt, wanted(60))
    assert trace.output == plain.decode(prompt, wanted(60)).output
    assert max(fact.drafted for fact in trace.rounds) == 4 and sum(fact.accepted for fact in trace.rounds) > 4
    together = decoding.decode_together(decoder, [prompt, [9, 10]], wanted(20))
    assert [one.output for one in together] == [plain.decode(each, wanted(20)).output for each in (prompt, [9, 10])]


def test_the_translated_readme_says_the_same() -> None:
    """Guards against a command or a number that one language has, and the other has left behind."""
    english, chinese = ROOT / "README.md", TRANSLATED

    def code(document: Path) -> list[tuple[str, str]]:
        return [(language, re.sub(r" +#.*", "", content)) for language, content in blocks(document)]

    def numbers(document: Path) -> list[list[str]]:
        rows = re.findall(r"^\|.*", document.read_text(encoding="utf-8"), re.M)
        return [re.findall(r"\d+(?:\.\d+)?", re.sub(r"\(.*?\)", "", row)) for row in rows]

    assert code(english) == code(chinese)
    assert numbers(english) == numbers(chinese)
    assert sum(map(len, numbers(english))) > 50
    headings = [re.findall(r"^#+", document.read_text(encoding="utf-8"), re.M) for document in (english, chinese)]
    assert headings[0] == headings[1]
    assert len(english.read_text(encoding="utf-8").splitlines()) <= 150


def anchors(document: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


def test_the_page_of_figures_shows_them_all_by_section() -> None:
    """Guards against a figure that no page shows, or that stands in another section than in the report."""
    sections = re.split(r"^## (.+)$", (ROOT / "docs/figures.md").read_text(encoding="utf-8"), flags=re.M)
    shown = {
        name: section
        for section, content in zip(sections[1::2], sections[2::2], strict=True)
        for name in re.findall(r"\]\(\.\./(?:published/\w+/)?figures/(\w+)\.(?:png|svg)\)", content)
    }
    drawn = [*params.load(ROOT / "params.yaml")["figures"], *APART]
    assert shown == {name: plugins.load("figures", name).SECTION for name in drawn}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    """Guards against pages, pictures and headings that moved."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        place = (document.parent / path).resolve() if path else document
        assert place.exists() and place.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(place), target
