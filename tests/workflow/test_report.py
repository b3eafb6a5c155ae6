"""The report holds every figure with its caption and works without a network: as text, and in a real browser."""

import base64
import html
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dynatree import files, plugins
from dynatree.engine.machine import describe_machine
from dynatree.figures.shared.render import SUFFIXES, write
from dynatree.study import params
from tests.figures import tables
from tests.workflow.world import ROOT, World

pytestmark = pytest.mark.slow

BENCHMARK = "benchmark"  # drawn where it was run
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PROCESSOR = "<b>Processor & Sons</b>"
# How many colours a picture shows.
COLOURS = """(image) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const pixels = new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
    return new Set(pixels).size;
}"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Figures of made-up tables, and the report on them, built where nothing can be downloaded."""
    made = World(tmp_path_factory.mktemp("report"))
    made.copy()
    made.edit(figures=params.read(ROOT / "params.yaml").figures)
    # Of a scale that has data sets of its own.
    more = {f"{name}_more": source for name, source in made.params["sources"].items() if name.startswith("tiny_")}
    made.edit(sources={**made.params["sources"], **more})
    made.edit(scales__tiny__instead={"datasets": [f"{name}_more" for name in made.params["datasets"]]})
    known = params.read(made.folder / "params.yaml")
    content = tables.make()
    for name in (*known.figures, BENCHMARK):
        figure = plugins.load("figures", name)
        caption = figure.caption(content)
        picture = made.folder / f"figures/{name}.svg"
        write(figure.draw(content), picture, caption)
        files.write_text(picture.with_suffix(".caption.txt"), caption + "\n")
        # Of the same job, and no part of the report.
        for suffix in {*SUFFIXES} - {".svg"}:
            picture.with_suffix(suffix).touch()
    reached = {method: {dataset: {"speedup": 1.25} for dataset in known.datasets} for method in known.methods}
    machine = describe_machine("float32", "cpu") | {"processor": PROCESSOR}
    files.write_json(made.folder / "results/metrics.json", reached | {"machine": machine})
    made.check()
    proxies = [f"{name}_proxy=http://127.0.0.1:9" for name in ("http", "https")]
    made.run(
        "env", *proxies, "snakemake", "--cores", 1, "--report", "report.html", "--", "all", f"figures/{BENCHMARK}.svg"
    )
    return made


def figures(world: World) -> list[str]:
    return sorted([*params.read(world.folder / "params.yaml").figures, BENCHMARK])


def embedded(world: World, name: str) -> Any:
    """A variable of the page's scripts."""
    page = (world.folder / "report.html").read_text(encoding="utf-8")
    found = re.search(rf'<script id="[a-z-]*">\s*var {name} = (.*);$', page, re.M)
    assert found, name
    return json.loads(found[1])


def test_every_figure_is_embedded_with_its_caption(world: World) -> None:
    """Guards against a figure or a caption that the report lacks, or that is not the one the workflow drew."""
    results = embedded(world, "results")
    assert sorted(Path(path).stem for path in results) == figures(world)
    for path, result in results.items():
        assert base64.b64decode(result["data_uri"].partition("base64,")[2]) == (world.folder / path).read_bytes()
        caption = (world.folder / path).with_suffix(".caption.txt").read_text(encoding="utf-8").strip()
        assert html.escape(caption) in html.escape(html.unescape(result["caption"]))


def test_figures_stand_in_the_section_that_they_name(world: World) -> None:
    """Guards against a list of sections beside the figures' own."""
    placed = {
        Path(path).stem: section
        for section, parts in embedded(world, "categories").items()
        for part in parts.values()
        for path in part
    }
    assert placed == {name: plugins.load("figures", name).SECTION for name in figures(world)}


def test_figures_of_an_experiment_stand_together(world: World) -> None:
    """Guards against a long list in which what the main runs gave and what an experiment gave look alike."""
    placed = {
        Path(path).stem: part
        for parts in embedded(world, "categories").values()
        for part, paths in parts.items()
        for path in paths
    }
    shown = {name: getattr(plugins.load("figures", name), "EXPERIMENT", "main runs") for name in figures(world)}
    assert placed == {name: experiment.replace("_", " ") for name, experiment in shown.items()}


def test_the_description_says_machine_numbers_and_parameters(world: World) -> None:
    """Guards against a report that does not say what it was measured with; and against markup in a name."""
    text = embedded(world, "workflow_desc")
    assert PROCESSOR not in text and html.escape(PROCESSOR) in text
    assert "<td>1.25</td>" in text
    known = params.read(world.folder / "params.yaml")
    assert {name for name in known.sources if f"<th>{name}</th>" in text} == {*known.datasets}
    words = re.sub(r"<[^>]*>", "", text)
    assert f"scale: {known.scale}" in words and f"datasets: [{', '.join(world.params['datasets'])}]" in words


class References(HTMLParser):
    """What the elements of a page load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        loads = {"src", "srcset", "data"} | ({"href"} if tag in ("link", "image", "use") else set())
        self.found += [value or "" for name, value in attributes if name in loads]


def test_no_element_loads_anything_from_outside(world: World) -> None:
    """Guards against a page that is blank without a network, also where there is no browser to try it."""
    pages = [(world.folder / "report.html").read_text(encoding="utf-8"), embedded(world, "workflow_desc")]
    pages += [(world.folder / f"figures/{name}.svg").read_text(encoding="utf-8") for name in figures(world)]
    for page in pages:
        references = References()
        references.feed(page)
        assert not [found for found in references.found if not found.startswith(("data:", "#"))]


def unavailable(why: str) -> None:
    """Skip, or fail where a browser was promised."""
    if os.environ.get("DYNATREE_BROWSER") == "required":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture
def page(world: World) -> Any:
    """The report in headless Chromium without a network; `page.noise` is what it should not have said or asked for."""
    try:
        from playwright import sync_api
    except ImportError:
        unavailable("playwright is not installed: pip install 'dynatree[report]'")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        unavailable(f"no browser on the PATH: {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser)
        context = opened.new_context(offline=True, viewport={"width": 1400, "height": 1000})
        shown = context.new_page()
        shown.noise = []
        shown.on("console", lambda said: shown.noise.append(said.text) if said.type == "error" else None)
        shown.on("pageerror", lambda error: shown.noise.append(str(error)))
        address = (world.folder / "report.html").as_uri()
        local = (address, "data:", "blob:")
        shown.on("request", lambda asked: None if asked.url.startswith(local) else shown.noise.append(asked.url))
        shown.goto(address)
        yield shown
        opened.close()


def test_a_browser_paints_every_figure_and_asks_for_nothing(world: World, page: Any) -> None:
    """Guards against a picture that stays blank, an error of a script, and a request that leaves the page."""
    assert page.get_by_role("heading", name="DynaTree").is_visible()
    results = embedded(world, "results")
    painted = []
    places = [(section, part) for section, parts in embedded(world, "categories").items() for part in parts]
    for section, part in places:
        page.locator("nav").get_by_text(section, exact=True).click()
        if len(embedded(world, "categories")[section]) > 1:
            page.locator("nav").get_by_text(part, exact=True).click()
        for row in page.locator("nav tbody tr").all():
            name = row.locator("td").first.inner_text().replace(" ", "_")
            row.locator("a").first.click()
            picture = page.locator("div.p-3 > img")
            picture.evaluate("(image) => image.decode()")
            assert picture.get_attribute("src") == results[f"figures/{name}.svg"]["data_uri"]
            box = picture.bounding_box()
            assert box and box["width"] > 100 and box["height"] > 50, name
            assert picture.evaluate(COLOURS) > 10, name
            painted.append(name)
        page.locator("nav ol a").first.click()
    assert sorted(painted) == figures(world)
    assert not page.noise
