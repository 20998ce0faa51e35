"""The page in a real browser: it loads alone, its controls work, anyone can use it."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browser import chromium, without_webgl
from PIL import Image
from synthetic_atlas import synthetic_atlas, synthetic_tests

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.hypotheses.measures import measure_of
from qk_taxonomy.hypotheses.rank import BEYOND_EDGE
from qk_taxonomy.hypotheses.table import COLUMNS
from qk_taxonomy.labels import CLASS_COLOURS, MODEL_COLOURS, statistic_label
from qk_taxonomy.report.atlas import Atlas
from qk_taxonomy.report.page import SCRIPTS, STYLES, atlas_page
from qk_taxonomy.report.rows import listed_tests
from qk_taxonomy.statistics.shifts import FLIP_GROUPS, FLIP_LAYERS, WILCOXON
from qk_taxonomy.statistics.unmatched import MIXED_MODEL, MODEL_MEDIANS

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = ROOT / "qk_taxonomy/report/templates"
WHOLE = "document.documentElement.dataset.ready === 'whole'"
CLASSES = """[...document.querySelectorAll("#classes article h3 .marker")].map((marker) => ({
  colour: marker.style.color,
  symbol: marker.querySelector("use").getAttribute("href").replace("#marker-", ""),
}))"""
RANGE = "document.getElementById('map-plot').layout.xaxis.range"
HOSTILE = """</script><img src=x onerror="alert('x')">'"&λ模型 @,1"""

Opened = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@contextmanager
def opened(
    browser: Any, path: Path, *, address: str = "", width: int = 1400, **context: Any
) -> Iterator[Any]:
    """A page that must log no error and ask for nothing but its own file."""
    session = browser.new_context(viewport={"width": width, "height": 900}, **context)
    page = session.new_page()
    page.set_default_timeout(30_000)
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(f"{error}\n{error.stack}"))
    page.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
    page.on("request", lambda r: troubles.append(r.url) if not _own(r.url, path) else None)
    page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri() + address)
    if context.get("java_script_enabled", True):
        page.wait_for_function(WHOLE)
    yield page
    session.close()
    assert troubles == []


def _own(url: str, path: Path) -> bool:
    return url.split("#")[0] == path.as_uri() or url.startswith("blob:")


def written(folder: Path, atlas: Atlas) -> Path:
    path = folder / "report.html"
    path.write_text(atlas_page(atlas), encoding="utf-8")
    return path


def shifts(model: str, against: str) -> pd.DataFrame:
    """Rows of a contrast: shifts of three statistics over all layers, by both kinds of flips."""
    rows = [
        {
            "family": "family-0", "model": model, "against": against, "circuit": "qk",
            "convention": "raw", "hypothesis": "contrast: shift", "statistic": name,
            "effect": effect, "low": effect - 0.2, "high": effect + 0.2, "p_value": 0.01,
            "q_value": q, "n": n, "method": method,
        }
        for method, n in ((FLIP_LAYERS, 6), (FLIP_GROUPS, 24))
        for name, effect, q in (("MIN", -0.5, 0.01), ("r90", 0.25, 0.2), ("STD", 0.0, 0.9))
    ]  # fmt: skip
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def counts(model: str) -> pd.DataFrame:
    """Rows that describe and have no p."""
    rows = [
        {
            "family": "family-1", "model": model, "circuit": "qk", "convention": "raw",
            "layer": 0, "head": head, "hypothesis": "rank", "statistic": "above_untrained_edge",
            "effect": 3.0 + head, "n": 64, "method": BEYOND_EDGE,
        }
        for head in range(2)
    ]  # fmt: skip
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def changed(model: str, against: str) -> pd.DataFrame:
    rows = [
        {
            "family": "family-0", "model": model, "against": against, "stack": "", "layer": i % 6,
            "head": i % 4, "wasserstein": 0.5 - i / 100, "jensen_shannon": 0.1,
            "q_wasserstein_untrained": 0.01, "effective_rank_shift": -1.5,
        }
        for i in range(24)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    """Four models of 24 heads in two families, with tests and one contrast."""
    atlas = synthetic_atlas(96)
    models = [f"model-{i}" for i in range(4)]
    tests = [
        synthetic_tests(50, models), shifts("model-0", "family-0/model-2"), counts("model-1")
    ]  # fmt: skip
    return replace(
        atlas,
        models=atlas.models.assign(**{f"fact_{i}": "a_rather_long_word" for i in range(12)}),
        tests=pd.concat(tests),
        contrasts=shifts("model-0", "family-0/model-2"),
        changed=changed("model-0", "family-0/model-2"),
    )


@pytest.fixture(scope="module")
def report(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("report"), atlas)


@pytest.fixture(scope="module")
def shared_page(browser: Any, report: Path) -> Iterator[Any]:
    with opened(browser, report) as page:
        yield page


@pytest.fixture
def page(shared_page: Any) -> Any:
    """The page as it opens, but for the card of the head last pointed at."""
    shared_page.evaluate("location.hash = '#nothing='")
    shared_page.wait_for_function("!document.querySelector('#pin-list li')")
    return shared_page


def drawn_points(page: Any) -> int:
    return int(
        page.evaluate(
            "document.getElementById('map-plot').data.reduce((n, t) => n + t.x.length, 0)"
        )
    )


def pixel_of(page: Any, atlas: Atlas, row: int) -> tuple[float, float]:
    """Where a head's point is on the screen."""
    head = atlas.heads.loc[row]
    page.locator("#map-plot").scroll_into_view_if_needed()
    return tuple(
        page.evaluate(
            """([x, y]) => {
              const plot = document.getElementById("map-plot");
              const { xaxis, yaxis } = plot._fullLayout;
              const { left, top } = plot.getBoundingClientRect();
              return [left + xaxis._offset + xaxis.l2p(x), top + yaxis._offset + yaxis.l2p(y)];
            }""",
            [float(head["umap_x"]), float(head["umap_y"])],
        )
    )


def lonely(atlas: Atlas) -> int:
    """The head whose point lies farthest from all others."""
    points = atlas.heads[["umap_x", "umap_y"]].to_numpy()
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    return int(distances.min(-1).argmax())


def name_of(atlas: Atlas, row: int) -> str:
    head = atlas.heads.loc[row]
    stack = f"{head['stack']} " if head["stack"] else ""
    return f"{head['model']} {stack}{head['layer']}.{head['head']}"


def pinned(page: Any) -> list[str]:
    return list(page.locator("#pin-list li span").all_inner_texts())


def open_choices(page: Any, kind: str) -> None:
    page.evaluate(f"document.querySelector('[data-choices={kind}]').open = true")


def exported(page: Any) -> pd.DataFrame:
    with page.expect_download() as download:
        page.click("#export")
    assert download.value.suggested_filename == "report.heads.csv"
    text = Path(download.value.path()).read_text(encoding="utf-8")
    return pd.DataFrame(list(csv.DictReader(io.StringIO(text))))


def test_filters_change_what_is_shown_and_colours_do_not(page: Any, atlas: Atlas) -> None:
    shown = page.locator("#shown")
    assert shown.inner_text() == "96 of 96 heads shown."
    assert drawn_points(page) == 96
    open_choices(page, "class")
    page.locator("[data-choices=class] input").first.uncheck()
    left = int((atlas.heads["class"] != 0).sum())
    assert shown.inner_text() == f"{left} of 96 heads shown."
    assert drawn_points(page) == left
    for colour in ("family", "model", "layer", "depth", "MAX", "near_zero_ratio"):
        page.select_option("#colour", colour)
        assert drawn_points(page) == left, colour
    page.fill("#layer-high", "2")
    page.locator("#layer-high").blur()
    wanted = atlas.heads[(atlas.heads["class"] != 0) & (atlas.heads["layer"] <= 2)]
    assert shown.inner_text() == f"{len(wanted)} of 96 heads shown."
    table = exported(page)
    assert table["model"].tolist() == wanted["model"].tolist()
    page.locator("[data-choices=class] [data-none]").click()
    assert shown.inner_text() == "0 of 96 heads shown."
    assert page.locator("#map-alt").inner_text() == "No head passes the filters."
    page.select_option("#colour", "layer")
    assert "No head passes the filters." in page.locator("#map-plot").inner_text()
    assert page.locator("#map-key").inner_text() == ""
    page.fill("#layer-low", "900")
    page.locator("#layer-low").blur()
    assert [page.input_value(f"#layer-{end}") for end in ("low", "high")] == ["2", "5"]
    page.click("#zoom-in")
    page.click("#everything")
    assert shown.inner_text() == "96 of 96 heads shown."
    low, high = page.evaluate("document.getElementById('map-plot').layout.xaxis.range")
    x = atlas.heads["umap_x"]
    assert low < x.min()
    assert high > x.max()


def test_no_control_covers_a_head(page: Any, atlas: Atlas) -> None:
    hidden = []
    for row in atlas.heads.index:
        at = page.evaluate(
            "([x, y]) => document.elementFromPoint(x, y).closest('#map-plot')?.id ?? null",
            list(pixel_of(page, atlas, row)),
        )
        hidden += [] if at else [row]
    assert hidden == []


def test_the_browser_has_the_numbers_of_the_atlas(page: Any, atlas: Atlas) -> None:
    table = exported(page)
    assert set(table["circuit"] + table["convention"]) == {"qkraw"}
    for name in ("family", "model", "stack"):
        assert table[name].tolist() == atlas.heads[name].tolist()
    for name in ("layer", "head", "class"):
        assert table[name].astype(int).tolist() == atlas.heads[name].tolist()
    for name in ("umap_x", "umap_y", *atlas.statistics):
        np.testing.assert_allclose(table[name].astype(float), atlas.heads[name], rtol=1e-3)


def test_a_head_pointed_at_shows_its_card_and_a_click_pins_it(page: Any, atlas: Atlas) -> None:
    row = lonely(atlas)
    x, y = pixel_of(page, atlas, row)
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    card = page.locator("#card")
    card.locator("h3").wait_for()
    head = atlas.heads.loc[row]
    assert card.locator("h3").inner_text() == head["model"]
    assert card.locator(".place").inner_text() == f"layer {head['layer']}, head {head['head']}"
    texts = dict(line.inner_text().split("\t") for line in card.locator("tbody tr").all())
    assert list(texts) == [statistic_label(name) for name in atlas.statistics]
    for name in atlas.statistics:
        told = float(texts[statistic_label(name)].replace("−", "-"))
        assert math.isclose(told, head[name], rel_tol=1e-3, abs_tol=1e-6), name
    heights = [float(bar.get_attribute("height")) for bar in card.locator("svg.small rect").all()]
    shares = atlas.histograms[row] / atlas.histograms[row].max()
    np.testing.assert_allclose(np.array(heights) / max(heights), shares, atol=0.005)
    page.mouse.click(x, y)
    page.locator("#pin-list li").wait_for()
    assert pinned(page) == [name_of(atlas, row)]
    lines = page.evaluate("document.getElementById('pin-plot').data.map((t) => t.y)")
    np.testing.assert_allclose(lines[0][:-1], atlas.histograms[row], atol=0.01)
    page.mouse.click(x, y)
    page.locator("#pin-list li").wait_for(state="detached")


def test_heads_are_reached_by_keyboard(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        check_keyboard(page)


def check_keyboard(page: Any) -> None:
    page.locator("#map-plot").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    # Of four heads a layer: from the first to the second, and up one layer.
    assert pinned(page) == ["model-0 1.1"]
    page.fill("#pin-text", "model-3 5.2")
    page.keyboard.press("Enter")
    page.fill("#pin-text", "family-0/model-2 0 3")
    page.keyboard.press("Enter")
    assert pinned(page) == ["model-0 1.1", "model-3 5.2", "model-2 0.3"]
    message = page.locator("#pin-message")
    for text, answer in (
        ("model-3 5.2", "model-3 5.2 is pinned already."),
        ("model-3 9.0", "No head 9.0 in model-3."),
        ("gpt 0.0", "No model is called gpt."),
        ("gpt", "Wanted a model, a layer and a head"),
        ("model 1.1", "4 heads have that name"),
    ):
        page.fill("#pin-text", text)
        page.keyboard.press("Enter")
        assert message.inner_text().startswith(answer)
    assert page.locator("#pin-table thead th").count() == 4
    labels = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.id"
    page.get_by_role("button", name="Remove pin model-3 5.2").press("Enter")
    assert pinned(page) == ["model-0 1.1", "model-2 0.3"]
    assert page.evaluate(labels) == "Remove pin model-2 0.3"
    button = page.locator("#card button")
    button.press("Enter")
    assert pinned(page) == ["model-0 1.1"]
    assert button.evaluate("(b) => b === document.activeElement")
    button.press("Enter")
    page.get_by_role("button", name="Remove all pins").press("Enter")
    assert pinned(page) == []
    assert page.evaluate(labels) == "pin-text"
    for head in range(3):
        for layer in (1, 2, 3):
            page.fill("#pin-text", f"model-1 {layer}.{head}")
            page.keyboard.press("Enter")
    assert len(pinned(page)) == 8
    assert "8 heads are pinned" in message.inner_text()


def test_an_address_opens_the_same_view(browser: Any, report: Path, page: Any) -> None:
    page.select_option("#colour", "r90")
    open_choices(page, "family")
    page.locator("[data-choices=family] input").first.uncheck()
    page.fill("#layer-low", "1")
    page.locator("#layer-low").blur()
    page.select_option("#view-model", "1")
    page.select_option("#view-statistic", "STD")
    page.fill("#pin-text", "model-1 2.3")
    page.keyboard.press("Enter")
    address = page.evaluate("location.hash")
    with opened(browser, report, address=address) as again:
        assert again.locator("#shown").inner_text() == page.locator("#shown").inner_text()
        for control in ("#colour", "#layer-low", "#view-model", "#view-statistic"):
            assert again.input_value(control) == page.input_value(control)
        assert pinned(again) == ["model-1 2.3"]
        assert again.evaluate("location.hash") == address
        again.click("nav a:has-text('Tests')")
        assert again.evaluate("location.hash") == address


def test_what_an_address_names_and_is_not_here_is_left_out(page: Any) -> None:
    page.select_option("#colour", "r90")
    address = "#colour=nothing&model=%3Da/b&layers=x&view=a/b&statistic=b&pin=a&pin=a/b//0.0"
    page.evaluate("(hash) => { location.hash = hash; }", address)
    page.wait_for_function("document.getElementById('colour').value === 'class'")
    assert page.locator("#shown").inner_text() == "96 of 96 heads shown."
    assert pinned(page) == []
    note = page.locator("#not-here")
    lost = ("colour nothing", "model a/b", "statistic b", "head a", "head a/b/0.0")
    assert all(name in note.inner_text() for name in lost)
    page.evaluate("location.hash = '#class=none&pin=family-0/model-0//1.1'")
    page.locator("#pin-list li").wait_for()
    assert page.locator("#shown").inner_text() == "0 of 96 heads shown."
    assert not note.is_visible()
    page.evaluate("location.hash = ''")
    page.locator("#pin-list li").wait_for(state="detached")
    assert page.locator("#shown").inner_text() == "96 of 96 heads shown."


def test_lines_of_pinned_heads_are_no_class_and_have_letters(page: Any, atlas: Atlas) -> None:
    keys = [f"family-{m % 2}/model-{m}//{layer}.{m}" for m in range(4) for layer in (0, 4)]
    page.evaluate("(hash) => { location.hash = hash; }", "#" + "&".join(f"pin={k}" for k in keys))
    page.wait_for_function("document.querySelectorAll('#pin-list li').length === 8")
    plot = page.evaluate(
        """(() => {
          const { data, layout } = document.getElementById("pin-plot");
          return { lines: data.map((t) => t.line), letters: layout.annotations,
                   legend: layout.showlegend };
        })()"""
    )
    looks = {(line["color"], line["dash"]) for line in plot["lines"]}
    assert len(looks) == 8
    assert not {colour for colour, _ in looks} & {*CLASS_COLOURS, *MODEL_COLOURS}
    assert not plot["legend"]
    assert [mark["text"] for mark in plot["letters"]] == [f"<b>{c}</b>" for c in "ABCDEFGH"]
    assert len({mark["x"] for mark in plot["letters"]}) == 8
    swatches = page.locator("#pin-list .swatch line").all()
    assert {line.get_attribute("stroke") for line in swatches} == {c for c, _ in looks}
    table = page.locator("#pin-table tr", has_text="share of λ beyond")
    told = [float(text.removesuffix(" %")) for text in table.locator("td").all_inner_texts()]
    rows = [(m * 24 + layer * 4 + m) for m in range(4) for layer in (0, 4)]
    np.testing.assert_allclose(told, 100 * atlas.beyond[rows], rtol=0.01)


def test_the_picture_of_the_map_is_understood_alone(page: Any) -> None:
    for colour, key in (("class", "legend"), ("MAX", "colorbar")):
        page.select_option("#colour", colour)
        with page.expect_download() as download:
            page.click("#image")
        assert download.value.suggested_filename == "report.map.png"
        with Image.open(download.value.path()) as picture:
            pixels = np.asarray(picture.convert("RGBA"))
        assert pixels[3, 3].tolist() == [255, 255, 255, 255]
        # The title above, and the key at the right, where the page's own map has neither.
        assert (pixels[:80].min(axis=(0, 2)) < 100).any(), key
        assert pixels[120:, -60:].min() < 100, key


def rows_of(page: Any, table: str) -> list[list[str]]:
    return [row.locator("td").all_inner_texts() for row in page.locator(f"{table} tbody tr").all()]


def test_the_table_of_tests_is_sorted_searched_and_turned(page: Any, atlas: Atlas) -> None:
    table = page.locator("#test-table")
    heads = [text.rstrip(" \xa0↕↑↓") for text in table.locator("thead th").all_inner_texts()]
    q = heads.index("q")
    measure, n = heads.index("measure"), heads.index("n")
    caption = table.locator("caption")
    assert caption.inner_text() == "Tests: rows 1–20 of 56, of 58 in all"
    first = rows_of(page, "#test-table")
    assert first[0][measure] == "ratio to the untrained median (none: 1)"
    assert first[0][n] == "4000 untrained heads drawn"
    button = table.get_by_role("button", name="q", exact=True)
    button.click()
    assert table.locator("th[aria-sort=ascending]").inner_text().startswith("q")
    smallest = np.sort(atlas.tests["q_value"].dropna().to_numpy(float))
    shown = [float(row[q]) for row in rows_of(page, "#test-table")]
    np.testing.assert_allclose(shown, smallest[:20], rtol=0.06)
    button.click()
    shown = [float(row[q]) for row in rows_of(page, "#test-table")]
    np.testing.assert_allclose(shown, smallest[::-1][:20], rtol=0.06)
    button.click()
    assert rows_of(page, "#test-table") == first
    table.get_by_role("button", name="Last page").click()
    assert caption.inner_text() == "Tests: rows 41–56 of 56, of 58 in all"
    # A text that all rows but the contrast's have, and a head's number that sorts as a number.
    page.fill("#test-search", "UNTRAINED r90")
    page.wait_for_function("document.querySelector('#test-table caption').innerText.includes('25')")
    assert caption.inner_text() == "Tests: rows 1–20 of 25, of 58 in all"
    page.fill("#test-search", "nothing of the kind")
    page.wait_for_function("!document.querySelector('#test-table tbody tr')")
    page.fill("#test-search", "")
    page.check("#test-rejected")
    few = int((atlas.tests["q_value"] <= 0.05).sum())
    assert f" of {few}, of 58 in all" in caption.inner_text()
    page.uncheck("#test-rejected")
    page.uncheck("#test-with-p")
    assert caption.inner_text() == "Tests: rows 1–20 of 58"
    page.check("#test-with-p")
    page.select_option("#test-hypothesis", "contrast: shift")
    assert caption.inner_text() == "Tests: rows 1–6 of 6, of 58 in all"


def test_contrasts_have_a_forest_plot_and_their_heads_are_pinned(page: Any) -> None:
    forest = page.evaluate("document.getElementById('forest-plot').data[0]")
    # Drawn from below; flips of layers, of which six are enough.
    assert forest["x"] == [0.0, 0.25, -0.5]
    np.testing.assert_allclose(forest["error_x"]["array"], 0.2, atol=1e-3)
    assert forest["marker"]["symbol"] == ["circle-open", "circle-open", "diamond"]
    assert "n = 6" in page.locator("#forest-note").inner_text()
    assert not page.locator("#contrast-twin").is_visible()
    page.get_by_role("button", name="Pin head 1.1").first.click()
    assert pinned(page) == ["model-0 1.1"]


def test_classes_filter_the_map_and_layers_show_a_model(page: Any, atlas: Atlas) -> None:
    page.get_by_role("button", name="Show only class 1 on the map").click()
    n = int((atlas.heads["class"] == 1).sum())
    assert page.locator("#shown").inner_text() == f"{n} of 96 heads shown."
    page.select_option("#view-model", "2")
    page.select_option("#view-statistic", "SKEW")
    heads = atlas.heads[atlas.heads["model"] == "model-2"]
    grid = page.evaluate("document.getElementById('grid-plot').data[0].z")
    wanted = heads.pivot(index="head", columns="layer", values="class").to_numpy()
    np.testing.assert_array_equal(grid, wanted)
    boxes = page.evaluate("document.getElementById('box-plot').data")
    by_layer = heads.groupby("layer")["SKEW"]
    for name, share in (("q1", 0.25), ("median", 0.5), ("q3", 0.75)):
        np.testing.assert_allclose(boxes[0][name], by_layer.quantile(share), rtol=1e-3)
    np.testing.assert_allclose(boxes[1]["y"], by_layer.mean(), rtol=1e-3)
    page.locator("#grid-plot").scroll_into_view_if_needed()
    box = page.locator("#grid-plot .nsewdrag").bounding_box()
    # The cell of layer 0 and head 3: the first from the left, at the top.
    x, y = box["x"] + box["width"] / 12, box["y"] + box["height"] / 8
    page.mouse.move(x - 2, y)
    page.mouse.click(x, y)
    page.locator("#pin-list li").wait_for()
    assert pinned(page) == ["model-2 0.3"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_anyone_can_use_it(browser: Any, report: Path, scheme: str) -> None:
    """No violation that axe-core knows, contrast of colours included."""
    from axe_playwright_python.sync_playwright import Axe

    address = "#pin=family-0/model-0//1.1&pin=family-1/model-1//2.3"
    with opened(browser, report, address=address, color_scheme=scheme, bypass_csp=True) as page:
        for summary in page.locator("summary").all():
            summary.click()
        page.locator("#map-plot").focus()
        page.keyboard.press("ArrowRight")
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()


def luminance(page: Any, selector: str) -> float:
    colour = page.evaluate(
        f"getComputedStyle(document.querySelector('{selector}')).backgroundColor"
    )
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / (3 * 255)


def test_themes_follow_the_system_until_one_is_chosen(browser: Any, report: Path) -> None:
    with opened(browser, report, color_scheme="dark") as page:
        assert luminance(page, "body") < 0.2
        font = "document.getElementById('box-plot').layout.font.color"
        dark = page.evaluate(font)
        page.emulate_media(color_scheme="light")
        page.wait_for_function("document.documentElement.dataset.theme === 'light'")
        assert luminance(page, "body") > 0.9
        assert page.evaluate(font) != dark
        page.get_by_role("button", name="Dark theme").click()
        assert luminance(page, "body") < 0.2
        page.emulate_media(color_scheme="light")
        assert luminance(page, "body") < 0.2


def test_paper_is_white_and_cuts_no_chart(browser: Any, report: Path) -> None:
    address = "#pin=family-0/model-0//1.1"
    with opened(browser, report, color_scheme="dark", address=address) as page:
        plots = (
            "Array.from(document.querySelectorAll('.plot'), "
            "(p) => [p.layout.width, p.layout.font.color])"
        )
        before = page.evaluate(plots)
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        printed = page.evaluate(plots)
        assert len(printed) == 5
        assert max(width for width, _ in printed) <= 680
        assert {colour for _, colour in printed} == {"#1d2127"}
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 720, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= 720
        assert page.get_by_text("On paper are the rows of one page").first.is_visible()
        models = page.locator(".models").bounding_box()
        assert models["x"] + models["width"] <= 720
        page.emulate_media(media="screen")
        page.set_viewport_size({"width": 1400, "height": 900})
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate(plots) == before
        assert page.pdf().startswith(b"%PDF")
        assert luminance(page, "body") < 0.2


def test_no_width_scrolls_sideways(browser: Any, report: Path) -> None:
    address = "#pin=family-0/model-0//1.1&pin=family-1/model-1//2.3&pin=family-1/model-1//3.3"
    with opened(browser, report, width=360, address=address) as page:
        for summary in page.locator("summary").all():
            summary.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.set_viewport_size({"width": 768, "height": 900})
        page.wait_for_function("document.getElementById('box-plot').layout.width > 600")
        assert page.evaluate("document.documentElement.scrollWidth") <= 768


def test_without_scripts_the_classes_and_the_provenance_are_there(
    browser: Any, report: Path
) -> None:
    with opened(browser, report, java_script_enabled=False) as page:
        assert page.get_by_text("which your browser does not run").is_visible()
        assert page.locator("#classes article").count() == 3
        assert page.get_by_role("table", name="Models").is_visible()
        assert page.get_by_text("These heads are drawn at random.").is_visible()
        assert not page.locator("#map").is_visible()
        assert not page.get_by_role("button").count()


def test_without_webgl_the_map_is_drawn_all_the_same(browser: Any, report: Path) -> None:
    with without_webgl(browser) as plain, opened(plain, report) as page:
        assert page.locator("#map-plot .scatterlayer path.point").count() == 96


def looks(page: Any) -> list[tuple[str, float]]:
    """Symbol and size of each trace of the map."""
    traces = page.evaluate(
        "document.getElementById('map-plot').data.map((t) => [t.marker.symbol, t.marker.size])"
    )
    return [(symbol, size) for symbol, size in traces]


def test_classes_of_one_colour_are_told_apart(browser: Any, tmp_path: Path) -> None:
    """On a map of dots by rings, where it is seen in part by markers, in small cells by marks."""
    atlas = synthetic_atlas(20_736, n_layers=96, heads_a_layer=27, n_classes=12)
    with opened(browser, written(tmp_path, atlas)) as page:
        assert looks(page) == [("circle", 3)] * 10 + [("circle-open", 5)] * 2
        # A ring is its line alone.
        widths = page.evaluate(
            "document.getElementById('map-plot').data.map((t) => t.marker.line.width)"
        )
        assert min(widths[10:]) >= 1
        rings = page.locator("#map-key .marker.open")
        assert rings.count() == 2
        assert page.locator("#map-key li").nth(10).locator(".open").count() == 1
        while looks(page)[0][1] < 4:
            page.click("#zoom-in")
        markers = [one["symbol"] for one in page.evaluate(CLASSES)]
        assert [symbol for symbol, _ in looks(page)] == markers
        assert len({(one["colour"], one["symbol"]) for one in page.evaluate(CLASSES)}) == 12
        assert rings.count() == 0
        seen = page.evaluate(RANGE)
        page.locator("#layer-low").fill("3")
        page.locator("#layer-low").blur()
        assert page.evaluate(RANGE) == seen
        page.click("#everything")
        assert looks(page)[10] == ("circle-open", 5)
        cells, marks = page.evaluate("document.getElementById('grid-plot').data")
        assert cells["texttemplate"] == ""
        model = atlas.heads[(atlas.heads["model"] == "model-0") & (atlas.heads["class"] >= 10)]
        assert list(zip(marks["x"], marks["y"], strict=True)) == list(
            zip(model["layer"], model["head"], strict=True)
        )
        assert set(marks["marker"]["symbol"]) == set(markers[10:])
        assert page.locator("#layers .key .mark").count() == 2


def test_the_key_shows_a_kind_alone_and_all_again(page: Any, atlas: Atlas) -> None:
    key = page.locator("#map-key button")
    key.nth(1).focus()
    page.keyboard.press("Enter")
    n = int((atlas.heads["class"] == 1).sum())
    assert page.locator("#shown").inner_text() == f"{n} of 96 heads shown."
    assert [text.strip() for text in key.all_inner_texts()] == [f"class 1 {n}"]
    assert key.first.get_attribute("aria-pressed") == "true"
    assert key.first.evaluate("(b) => b === document.activeElement")
    page.keyboard.press("Enter")
    assert page.locator("#shown").inner_text() == "96 of 96 heads shown."
    assert key.nth(1).evaluate("(b) => b === document.activeElement")


def test_beside_a_head_is_what_its_colour_says(page: Any, atlas: Atlas) -> None:
    page.fill("#pin-text", "model-0 1.2")
    page.keyboard.press("Enter")
    page.locator("#map-plot").focus()
    page.keyboard.press("ArrowUp")
    label = "document.getElementById('map-plot').layout.annotations.at(-1).text"
    place = page.evaluate(label).split(":")[0]
    row = next(row for row in atlas.heads.index if name_of(atlas, row) == f"model-0 {place}")
    head = atlas.heads.loc[row]
    for colour, wanted in (
        ("class", f"class {head['class']}"),
        ("family", "family-0"),
        ("model", "model-0"),
        ("depth", f"depth {head['layer'] / 5:g}"),
    ):
        page.select_option("#colour", colour)
        assert page.evaluate(label) == f"{place}: {wanted}"


def test_a_finger_shows_pins_and_scrolls(browser: Any, report: Path, atlas: Atlas) -> None:
    phone = {"has_touch": True, "is_mobile": True}
    with opened(browser, report, width=390, **phone) as page:
        row = lonely(atlas)
        page.touchscreen.tap(*pixel_of(page, atlas, row))
        page.locator("#card h3").wait_for()
        assert page.locator("#card h3").inner_text() == atlas.heads["model"][row]
        assert pinned(page) == []
        page.touchscreen.tap(*pixel_of(page, atlas, row))
        page.locator("#pin-list li").wait_for()
        assert pinned(page) == [name_of(atlas, row)]
        drags = "[...document.querySelectorAll('.plot')].map((p) => p.layout.dragmode)"
        assert not any(page.evaluate(drags))
        page.click("#zoom-in")
        assert page.evaluate(drags) == ["pan", False, False, False, False]
        page.click("#zoom-all")
        assert not any(page.evaluate(drags))
        page.locator("#grid-plot").scroll_into_view_if_needed()
        box = page.locator("#grid-plot .nsewdrag").bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] / 12, box["y"] + box["height"] / 8)
        page.wait_for_function("document.querySelectorAll('#pin-list li').length === 2")
        assert pinned(page)[1] == "model-0 0.3"
        assert page.get_by_text("Tap a head to see it").is_visible()
        heights = page.evaluate(
            "[...document.querySelectorAll('button, select, summary')]"
            ".filter((e) => e.offsetParent).map((e) => e.getBoundingClientRect().height)"
        )
        assert min(heights) >= 44


def test_names_of_any_length_keep_to_the_page(browser: Any, tmp_path: Path) -> None:
    atlas = synthetic_atlas(48)
    long = {column: f"{column}-{'y' * 113}" for column in ("family", "model")}
    named = replace(atlas, heads=atlas.heads.assign(**long), models=atlas.models.assign(**long))
    named = replace(
        named, tests=synthetic_tests(4, [long["model"]]).assign(family=long["family"])
    )  # fmt: skip
    with opened(browser, written(tmp_path, named), width=360) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        cells = page.evaluate(
            "[...document.querySelectorAll('#test-table td')]"
            ".map((cell) => cell.scrollWidth - cell.clientWidth)"
        )
        assert max(cells) <= 0
        assert page.locator(".models tbody tr").first.bounding_box()["height"] < 40
        page.select_option("#colour", "model")
        page.locator("#map-plot").focus()
        page.keyboard.press("ArrowRight")
        label = "document.getElementById('map-plot').layout.annotations.at(-1).text"
        assert page.evaluate(label) == f"0.0: {long['model'][:12]}…{'y' * 11}"


def test_texts_are_never_markup(browser: Any, tmp_path: Path) -> None:
    atlas = synthetic_atlas(48, title=HOSTILE)
    tests = synthetic_tests(3, [HOSTILE]).assign(note=HOSTILE, family=HOSTILE)
    contrasts = shifts(HOSTILE, f"{HOSTILE}~random-0").assign(family=HOSTILE)
    hostile = replace(
        atlas,
        heads=atlas.heads.assign(family=HOSTILE, model=HOSTILE + atlas.heads["model"]),
        models=atlas.models.assign(family=HOSTILE, model=HOSTILE),
        tests=tests,
        contrasts=contrasts,
        provenance={HOSTILE: HOSTILE},
        notes=(HOSTILE,),
    )
    with opened(browser, written(tmp_path, hostile)) as page:
        assert page.title() == HOSTILE
        assert page.locator("img").count() == 0
        for colour in ("family", "model"):
            page.select_option("#colour", colour)
            assert HOSTILE in page.locator("#map-key").inner_text()
        page.fill("#pin-text", f"{HOSTILE}model-1 2.3")
        page.keyboard.press("Enter")
        assert pinned(page) == [f"{HOSTILE}model-1 2.3"]
        address = page.evaluate("location.hash")
        assert page.locator("#pin-plot img").count() == 0
        assert "never trained" in page.locator("#contrast-twin").inner_text()
        assert exported(page)["model"][0] == f"{HOSTILE}model-0"
        page.evaluate("location.hash = '#nothing='")
        page.locator("#pin-list li").wait_for(state="detached")
        page.evaluate("(hash) => { location.hash = hash; }", address)
        page.locator("#pin-list li").wait_for()
        assert pinned(page) == [f"{HOSTILE}model-1 2.3"]


def test_little_is_enough(browser: Any, tmp_path: Path) -> None:
    """One head of one class, without tests; several stacks; statistics without a value."""
    one = synthetic_atlas(1, n_classes=1)
    with opened(browser, written(tmp_path, one)) as page:
        assert page.locator("#shown").inner_text() == "1 of 1 head shown."
        assert page.locator("h1 + p").inner_text().startswith("1 head of 1 model in 1 family")
        assert page.get_by_text("No tests have been made").is_visible()
        assert page.get_by_text("No contrasts have been tested").is_visible()
        page.locator("#map-plot").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        assert pinned(page) == ["model-0 0.0"]
        value = float(one.heads["MAX"][0])
        page.select_option("#view-statistic", "MAX")
        low, high = page.evaluate("document.getElementById('box-plot').layout.yaxis.range")
        np.testing.assert_allclose([low, high], [value / 2, 1.5 * value], rtol=1e-3)


def test_stacks_and_statistics_without_a_value(browser: Any, tmp_path: Path) -> None:
    atlas = synthetic_atlas(96, stacks=("encoder", "decoder"))
    values = atlas.heads["power_law_alpha"].mask(atlas.heads["layer"] == 1)
    values[0] = np.inf
    dead = atlas.heads["MAX"].mask(atlas.heads.index == 7, 0.0)
    partly = replace(
        atlas,
        heads=atlas.heads.assign(power_law_alpha=values, near_zero_ratio=np.nan, MAX=dead),
    )
    with opened(browser, written(tmp_path, partly)) as page:
        page.select_option("#colour", "power_law_alpha")
        assert drawn_points(page) == 96
        assert "17 heads without a finite value" in page.locator("#map-key").inner_text()
        # One head of zeros leaves the scale of the others logarithmic.
        page.select_option("#colour", "MAX")
        assert drawn_points(page) == 96
        assert "(logarithmic)" in page.locator("#map-key").inner_text()
        assert "1 head at zero or without" in page.locator("#map-key").inner_text()
        page.select_option("#colour", "near_zero_ratio")
        assert drawn_points(page) == 96
        assert page.locator("#map-key .scale").count() == 0
        assert "from" not in page.locator("#map-alt").inner_text()
        page.select_option("#view-statistic", "near_zero_ratio")
        assert "No head here has a value" in page.locator("#box-plot").inner_text()
        assert page.locator("#box-note").inner_text() == "24 heads without a finite value."
        page.select_option("#view-statistic", "power_law_alpha")
        assert page.evaluate("document.getElementById('box-plot').data[0].x") == [0, 2, 3, 4, 5]
        assert "5 heads without a finite value" in page.locator("#box-note").inner_text()
        open_choices(page, "stack")
        page.locator("[data-choices=stack] input").first.uncheck()
        assert page.locator("#shown").inner_text() == "48 of 96 heads shown."
        page.select_option("#view-stack", label="decoder")
        page.fill("#pin-text", "model-1 decoder 3.2")
        page.keyboard.press("Enter")
        assert pinned(page) == ["model-1 decoder 3.2"]


def test_head_wise_tests_beyond_a_number_are_summed_up_by_layer() -> None:
    tests = pd.concat([synthetic_tests(800, ["a", "b"]), shifts("a", "b")], ignore_index=True)
    assert listed_tests(tests, most=806).table.shape[0] == 806
    assert listed_tests(tests, most=806).note == ""
    listed = listed_tests(tests, most=805)
    assert "806 tests" in listed.note
    keys = ["model", "layer", "statistic"]
    groups = tests[tests["head"].notna()].groupby(keys)
    rows = listed.table[listed.table["hypothesis"] == "rank"].set_index(keys).sort_index()
    assert len(rows) == groups.ngroups
    np.testing.assert_allclose(rows["effect"].to_numpy(float), groups["effect"].median())
    np.testing.assert_allclose(rows["q_value"].to_numpy(float), groups["q_value"].min())
    rejected = groups["q_value"].apply(lambda q: f"{(q <= 0.05).sum()} of {len(q)} heads")
    assert all(note.startswith(start) for note, start in zip(rows["note"], rejected, strict=True))
    assert (listed.table["hypothesis"] == "contrast: shift").sum() == 6


def test_a_hundred_thousand_heads_fit_into_15_megabytes() -> None:
    """By what a head adds: the page without heads is mostly plotly."""
    small, large = (len(atlas_page(synthetic_atlas(n, n_layers=24))) for n in (100, 4100))
    assert small + 100_000 * (large - small) / 4000 < 15e6


@pytest.mark.parametrize(
    ("folder", "names", "ending"), [("scripts", SCRIPTS, "js"), ("styles", STYLES, "css")]
)
def test_the_page_is_made_of_all_its_files(
    report: Path, folder: str, names: tuple[str, ...], ending: str
) -> None:
    page = report.read_text(encoding="utf-8")
    parts = {path.name: path for path in (TEMPLATES / folder).iterdir()}
    assert sorted(parts) == sorted(f"{name}.{ending}" for name in names)
    assert all(path.read_text(encoding="utf-8") in page for path in parts.values())


def test_every_method_says_what_it_measures() -> None:
    """Of all rows that tests of the committed spectra have, and of tests of groups of models."""
    table = pd.read_csv(ROOT / "plots/tests.csv", keep_default_na=False)
    # The last two are of groups of models, which no committed table has.
    methods = {*table["method"], MIXED_MODEL, MODEL_MEDIANS} - {""}
    found = {method: measure_of(method, "r90") for method in methods}
    assert [method for method, one in found.items() if not (one.effect and one.n)] == []
    assert str(measure_of(WILCOXON, "MIN")) == "Hodges–Lehmann shift of ln (none: 0)"
    assert str(measure_of(WILCOXON, "r90")) == "Hodges–Lehmann shift (none: 0)"
    assert measure_of("of another version", "r90").effect == ""


def test_cells_of_spreadsheets_are_no_formulas(browser: Any, tmp_path: Path) -> None:
    atlas = synthetic_atlas(24)
    names = {"model": "=1+1"}
    risky = replace(
        atlas, heads=atlas.heads.assign(**names), models=atlas.models.head(1).assign(**names)
    )
    with opened(browser, written(tmp_path, risky)) as page:
        assert set(exported(page)["model"]) == {"'=1+1"}


def test_tables_that_do_not_fit_together_are_told() -> None:
    atlas = synthetic_atlas(24)
    with pytest.raises(ShapeError, match=r"histograms \(24, 24\) .* found \(23, 24\)"):
        replace(atlas, histograms=atlas.histograms[1:])
    with pytest.raises(ShapeError, match=r"shares beyond the bins \(24,\) .* found \(23,\)"):
        replace(atlas, beyond=atlas.beyond[1:])
    with pytest.raises(ShapeError, match=r"first columns .* found family, model, layer"):
        replace(atlas, heads=atlas.heads.drop(columns="stack"))
    with pytest.raises(ShapeError, match="there are 2 classes"):
        replace(atlas, classes=atlas.classes[:2])
