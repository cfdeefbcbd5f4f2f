"""The page of a report in a real browser: nothing outside the view, no complaint, metric, order and copying work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, browser, chromium
from run_folders import METRICS, write_run

from recbole_prune import cli

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(chromium() is None, reason="no Chromium here: apt-get install chromium"),
]

# what is wider than the view and does not scroll by itself; what only screen readers see is no part of the view
OUTSIDE = """
[...document.querySelectorAll("body *")].filter((each) => {
  const box = each.getBoundingClientRect();
  const scrolls = each.closest(".scroll, pre") && !each.matches(".scroll, pre");
  return box.width > 0 && (box.right > innerWidth + 1 || box.left < -1) && !scrolls && !each.closest(".hidden, .skip");
}).map((each) => each.outerHTML.slice(0, 120))
"""
# texts of charts that leave their chart, as long labels would
CUT = """
[...document.querySelectorAll("svg.chart text")].filter((each) => {
  const box = each.getBoundingClientRect(), chart = each.closest("svg").getBoundingClientRect();
  const across = box.left < chart.left - 1 || box.right > chart.right + 1;
  return across || box.top < chart.top - 1 || box.bottom > chart.bottom + 1;
}).map((each) => each.textContent)
"""
ORDER = "[...document.querySelectorAll('#tickets tbody th')].map((each) => each.textContent.trim())"
SELECT = "const s = document.getElementById('metric'); s.value = '{}'; s.dispatchEvent(new Event('change'))"
BUTTON = "[...document.querySelectorAll('#tickets .sort')].find((each) => each.textContent.startsWith('{}')).click()"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, Path]]:
    """A browser and a page of three runs, one of them unfinished."""
    folder = tmp_path_factory.mktemp("shown")
    same = {0: {"checkpoint_sha256": "a" * 64}}
    write_run(folder / "pruned", (0.0, 0.2, 0.5, 0.75, 0.9), lines=same, epochs=30)
    write_run(folder / "pruned", (0.0, 0.3), method="small_dense", lines=same)
    write_run(folder / "pruned", (0.0, 0.3), method="random", run_hash="<script>alert(1)<", finished=False)
    assert cli.main(["report", str(folder / "pruned"), f"--to={folder / 'page.html'}"]) == 0
    with browser(folder / "profile") as page:
        yield page, folder / "page.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_outside_the_view(shown: tuple[Page, Path], width: int, dark: bool) -> None:
    page, file = shown
    page.open(file, width, dark=dark)
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value(OUTSIDE) == [] and page.value(CUT) == []
    assert page.value("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    ground = page.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground.strip("rgb()").split(","))) < 120) is dark
    assert page.complaints == [] and set(page.requests) == {file.absolute().as_uri()}


def test_what_is_outside_would_be_seen(shown: tuple[Page, Path]) -> None:
    page, file = shown
    page.open(file, 400)
    page.value("document.querySelector('h1').append(Object.assign(document.createElement('div'), {id: 'wide'}))")
    page.value("document.getElementById('wide').attributeStyleMap.set('width', CSS.px(900))")
    assert page.value(OUTSIDE)


def test_another_metric_changes_charts_and_table(shown: tuple[Page, Path]) -> None:
    page, file = shown
    page.open(file, 1280)
    cells = "[...document.querySelectorAll('#tickets tbody tr')].map((row) => row.textContent)"
    chart = "document.querySelector('[data-chart=bytes]').outerHTML"
    before = page.value(cells), page.value(chart)
    page.value(f"{{ {SELECT.format(1)} }}")
    after = page.value(cells), page.value(chart)
    assert all(a != b for a, b in zip(before, after))
    names = page.value("[...document.querySelectorAll('.metric')].map((each) => each.textContent)")
    assert set(names) == {METRICS[1]}
    page.value(f"{{ {SELECT.format(0)} }}")
    assert page.value(cells) == before[0]
    assert page.value("document.querySelectorAll('[data-chart=bytes] .points g').length") == 6
    assert page.complaints == []


def test_drawn_by_the_script_is_what_was_written(shown: tuple[Page, Path]) -> None:
    """Back at the first metric the script has drawn the chart that the file has."""
    page, file = shown
    page.open(file, 1280)
    points = """[...document.querySelectorAll('[data-chart] .points g')].map((each) => [each.getAttribute('class'),
      each.querySelector('path')?.getAttribute('d') ?? '',
      ...['x', 'y', 'href'].map((name) => each.querySelector('use').getAttribute(name))])"""
    rest = """[...document.querySelectorAll('[data-chart] :is(.labels text, .rungs text, figcaption, .front)')].map(
      (each) => each.textContent + ['x', 'y', 'd'].map((name) => each.getAttribute(name)))"""
    written = page.value(points), page.value(rest)
    for number in (1, 0):
        page.value(f"{{ {SELECT.format(number)} }}")
    assert (page.value(points), page.value(rest)) == written


def test_sorting_and_what_it_tells(shown: tuple[Page, Path]) -> None:
    page, file = shown
    page.open(file, 1280)
    first = page.value(ORDER)
    page.value(BUTTON.format("sparsity"))
    page.value(BUTTON.format("sparsity"))
    numbers = page.value(
        "[...document.querySelectorAll('#tickets tbody tr')].map((row) => parseFloat(row.cells[1].textContent))"
    )
    assert numbers == sorted(numbers, reverse=True) and len(numbers) == len(first)
    assert page.value("document.querySelector('#tickets [aria-sort]').textContent").startswith("sparsity")
    page.value(BUTTON.format("ticket"))
    methods = [name.split()[0] for name in page.value(ORDER)]
    assert methods == sorted(methods) and page.value(ORDER) != first
    page.value(BUTTON.format("bytes"))
    assert page.value("document.querySelector('#tickets tbody tr:last-child').textContent").count("not measured") >= 1
    assert page.complaints == []


def test_keys_reach_everything(shown: tuple[Page, Path]) -> None:
    page, file = shown
    page.open(file, 1280)
    reached = []
    for _ in range(14):
        for kind in ("keyDown", "keyUp"):
            page.ask("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.append(
            page.value("document.activeElement.tagName + getComputedStyle(document.activeElement).outlineStyle")
        )
    tags = {each.replace("solid", "") for each in reached}
    assert {"A", "SELECT", "DIV", "BUTTON"} <= tags and all(each.endswith("solid") for each in reached)


def test_copying_gives_the_text(shown: tuple[Page, Path]) -> None:
    page, file = shown
    page.open(file, 1280)
    page.value("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.value("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.value("document.querySelector('button.copy[data-from=text-csv]').click()")
    copied = page.value("new Promise((done) => setTimeout(() => done(window.copied), 50))")
    assert copied.splitlines()[0].startswith("run,ticket,sparsity,bytes,") and len(copied.splitlines()) == 9
    assert page.value("document.querySelector('.said').textContent") == "copied"
    page.value("navigator.clipboard.writeText = async () => { throw new Error('not allowed'); }")
    page.value("document.querySelector('button.copy[data-from=text-latex]').click()")
    said = page.value(
        "new Promise((done) => setTimeout(() => done(document.querySelectorAll('.said')[1].textContent), 50))"
    )
    assert said == "copied" or said.startswith("selected")
    assert r"\begin{tabular}" in page.value("getSelection().toString()")
    assert page.complaints == []


def test_print_is_dark_on_white(shown: tuple[Page, Path]) -> None:
    page, file = shown
    page.open(file, 1000, dark=True)
    page.ask("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.value("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    page.ask("Emulation.setEmulatedMedia", media="")
    assert len(page.ask("Page.printToPDF")["data"]) > 10_000


def test_hostile_words_stay_words(shown: tuple[Page, Path]) -> None:
    page, file = shown
    page.open(file, 1280)
    assert "<script>alert(1)<" in page.value("document.body.innerText")
    assert page.value("document.scripts.length") == 2 and page.complaints == []


def test_other_scripts_do_not_run(shown: tuple[Page, Path], tmp_path: Path) -> None:
    """What would get into the page by a fault of ours is stopped by its policy."""
    page, file = shown
    forged = tmp_path / "forged.html"
    text = file.read_text(encoding="utf-8")
    forged.write_text(
        text.replace("<main>", "<main><script>window.forged = 1</script><img src=x onerror='window.forged = 2'>"),
        encoding="utf-8",
    )
    page.open(forged, 1280)
    assert page.value("window.forged === undefined")
    assert page.complaints
    page.complaints.clear()
    page.requests.clear()
