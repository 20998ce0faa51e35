"""Files of figures: formats, sizes, captions; colours that all can tell apart; nothing covered."""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from pypdf import PdfReader
from readable import assert_readable
from synthetic_circuits import circuit_table, model_circuits
from synthetic_query_norm import planted_study
from synthetic_superposition import superposition_run
from synthetic_survey import SHAPES, contrast, families, heads, layers_of, rank, taxonomy

from qk_taxonomy.cli import main
from qk_taxonomy.figures.boxes import box_caption, box_figure
from qk_taxonomy.figures.classes import class_caption, class_figure
from qk_taxonomy.figures.contrasts import contrast_caption, contrast_figure
from qk_taxonomy.figures.families import family_caption, family_figure
from qk_taxonomy.figures.joint import joint_caption, joint_figure
from qk_taxonomy.figures.ranks import rank_caption, rank_figure
from qk_taxonomy.figures.style import (
    ONE_COLUMN,
    PAGES,
    SCREEN,
    TWO_COLUMN,
    Page,
    class_colours,
    model_colours,
)
from qk_taxonomy.labels import statistic_axis
from qk_taxonomy.outputs import drawing
from qk_taxonomy.outputs.circuits import write_circuit_comparison, write_circuit_figures
from qk_taxonomy.outputs.drawing import Caption, write_figure
from qk_taxonomy.outputs.query_norm import write_query_norm
from qk_taxonomy.outputs.superposition import write_superposition
from qk_taxonomy.records import FIGURE_FORMATS, FIGURE_SIZES, FigureFiles, FigureSize
from qk_taxonomy.statistics.moments import STATISTICS
from qk_taxonomy.statistics.trends import depth_trend
from qk_taxonomy.studies.superposition.config import Target
from qk_taxonomy.studies.superposition.measured import MeasuredRun

TITLE = "Llama-3.1-405B-Instruct-of-a-long-name (llama), QK circuit, folded weights"
CAPTION = Caption("A title of a_b ~ and *", "What is shown, of 3 heads.")

# Inches of a figure's width.
WIDTHS: dict[FigureSize, float] = {"screen": 5.0, "one-column": 3.5, "two-column": 7.2}


def plain(page: Page, n: int = 10) -> Figure:
    fig = Figure(figsize=(page.width(5.0), 3.0), layout="constrained")
    ax = fig.subplots()
    ax.scatter(np.arange(n), np.arange(n))
    ax.set(xlabel="λ₁ (weights⁴)", ylabel="heads")
    return fig


@pytest.mark.parametrize("size", FIGURE_SIZES)
class TestFormats:
    def test_each_is_what_it_says_and_as_wide(self, size: FigureSize, tmp_path: Path) -> None:
        files = FigureFiles(FIGURE_FORMATS, size)
        written = write_figure(tmp_path / "a.b", plain, CAPTION, files)
        stem = "a.b" if size == "screen" else f"a.b.{size}"
        assert [path.name for path in written] == [f"{stem}.{one}" for one in FIGURE_FORMATS]
        png, pdf, svg = written
        with Image.open(png) as image:
            image.load()
            dots = 150 if size == "screen" else 300
            assert image.format == "PNG"
            assert image.size[0] == round(WIDTHS[size] * dots)
            assert image.info["dpi"] == pytest.approx((dots, dots), abs=0.02)
        (page,) = PdfReader(pdf).pages
        assert float(page.mediabox.width) == pytest.approx(72 * WIDTHS[size], abs=1e-3)
        # Letters are letters, in a TrueType font that the file carries.
        assert "λ₁ (weights⁴)" in page.extract_text()
        fonts = [font.get_object() for font in page["/Resources"]["/Font"].values()]
        descendants = [font["/DescendantFonts"][0].get_object() for font in fonts]
        assert {str(one["/Subtype"]) for one in descendants} == {"/CIDFontType2"}
        assert all("/FontFile2" in one["/FontDescriptor"] for one in descendants)
        root = ElementTree.parse(svg).getroot()
        assert root.tag.endswith("svg")
        assert float(root.attrib["width"].removesuffix("pt")) == pytest.approx(72 * WIDTHS[size])
        # Letters are shapes: a page cannot count on the reader's fonts.
        assert root.find(".//{http://www.w3.org/2000/svg}text") is None

    def test_what_is_drawn_again_is_the_same_bytes(self, size: FigureSize, tmp_path: Path) -> None:
        files = FigureFiles(FIGURE_FORMATS, size)
        once, again = (
            [path.read_bytes() for path in write_figure(tmp_path / name, plain, CAPTION, files)]
            for name in ("once", "again")
        )
        assert once == again


def test_a_figure_too_wide_for_one_column_says_so(tmp_path: Path) -> None:
    def wide(page: Page) -> Figure:
        return plain(page.wide)

    (path,) = write_figure(tmp_path / "a", wide, CAPTION, FigureFiles(("png",), "one-column"))
    assert path.name == "a.two-column.png"
    assert "as wide as two (7.2 inches)" in (tmp_path / "a.two-column.md").read_text()


def test_a_figure_higher_than_a_page_stands_in_two_columns(tmp_path: Path) -> None:
    def high(page: Page) -> Figure:
        fig = plain(page)
        fig.set_figheight(14.0 if page.narrow else 6.0)
        return fig

    (path,) = write_figure(tmp_path / "a", high, CAPTION, FigureFiles(("png",), "one-column"))
    assert path.name == "a.two-column.png"
    with Image.open(path) as image:
        assert image.size == (2160, round(0.75 * 6 * 300))


def test_a_cloud_is_pixels_in_a_vector_file(tmp_path: Path) -> None:
    few, many = (
        write_figure(
            tmp_path / name, functools.partial(plain, n=n), CAPTION, FigureFiles(("pdf", "svg"))
        )
        for name, n in (("few", 100), ("many", 20_000))
    )
    assert b"<image" not in few[1].read_bytes()
    assert b"<image" in many[1].read_bytes()
    assert "λ₁ (weights⁴)" in PdfReader(many[0]).pages[0].extract_text()
    assert max(path.stat().st_size for path in many) < 300_000


@pytest.mark.parametrize("formats", [("png",), ("pdf",), ("png", "pdf")])
def test_caption(formats: tuple[str, ...], tmp_path: Path) -> None:
    write_figure(tmp_path / "a b", plain, CAPTION, FigureFiles(formats))  # type: ignore[arg-type]
    text = (tmp_path / "a b.md").read_text()
    assert text.endswith("**A title of a_b \\~ and \\*.** What is shown, of 3 heads.\n")
    assert ("](a%20b.png)" in text) == ("png" in formats)
    assert ("[a b.pdf](a%20b.pdf)" in text) == ("pdf" in formats)


#: Colours as the colour-blind see them, of linear RGB: Machado, Oliveira & Fernandes (2009).
SIGHTS = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip


def lightness_and_colour(rgb: np.ndarray, sight: str) -> np.ndarray:
    """CIE L*a*b* of sRGB colours (n, 3), as they are seen."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ SIGHTS[sight].T, 0.0, 1.0)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
         [0.0193339, 0.1191920, 0.9503041]]
    )  # fmt: skip
    t = (seen @ to_xyz.T) / to_xyz.sum(1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1
    )


@pytest.mark.parametrize("sight", SIGHTS)
class TestColours:
    @pytest.mark.parametrize(
        ("colours", "least"),
        [(class_colours(6), 18.0), (class_colours(10), 17.0), (model_colours(7), 13.0)],
    )
    def test_they_are_told_apart(self, colours: list[object], least: float, sight: str) -> None:
        seen = lightness_and_colour(np.array([to_rgb(one) for one in colours]), sight)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert apart[np.triu_indices(len(seen), 1)].min() >= least

    @pytest.mark.parametrize("name", ["viridis", "cividis", "magma"])
    def test_sequences_grow_evenly_lighter(self, name: str, sight: str) -> None:
        lightness = lightness_and_colour(mpl.colormaps[name](np.linspace(0, 1, 64))[:, :3], sight)
        steps = np.diff(lightness[:, 0])
        assert (steps > 0).all()
        assert steps.max() < 3 * np.median(steps)


def test_every_statistic_has_a_unit() -> None:
    for name in STATISTICS:
        assert re.search(r"\((weights⁴|pure number|dimensions|of d_head)\)$", statistic_axis(name))


class TestReadable:
    """Letters cover no others and leave no page, at any depth and size."""

    def test_a_planted_overlap_is_found(self) -> None:
        def covered() -> Figure:
            fig = plain(SCREEN)
            fig.axes[0].text(0, 5, "a text")
            fig.axes[0].text(0, 5.1, "another one")
            return fig

        def outside() -> Figure:
            fig = plain(SCREEN)
            fig.text(0.95, 0.5, "a text that leaves the page")
            return fig

        for draw in (covered, outside):
            with pytest.raises(AssertionError, match="text"):
                assert_readable(draw)

    @pytest.fixture(params=SHAPES)
    def shape(self, request: pytest.FixtureRequest) -> tuple[int, int]:
        return SHAPES[request.param]

    def check(self, draw: Callable[[Page], Figure], shape: tuple[int, int], text: str) -> None:
        """Every size where there is most to draw, one column where least, a screen's between."""
        assert re.search(r"\d+ (heads|models|layers)", text)
        pages = {SHAPES["6x16"]: (ONE_COLUMN,), SHAPES["126x128"]: tuple(PAGES.values())}
        for page in pages.get(shape, (SCREEN,)):
            fig = assert_readable(functools.partial(draw, page))
            if page.room is not None:
                assert fig.get_figwidth() in (page.room, page.wide.room)
                drawn = [text.get_fontsize() for text in fig.findobj(mpl.text.Text)]
                assert min(drawn) >= 8.0
                assert max(drawn) <= 10.5

    def test_classes(self, shape: tuple[int, int], tmp_path: Path) -> None:
        found = taxonomy([heads(tmp_path, "f/m", *shape)])
        self.check(functools.partial(class_figure, found, TITLE), shape, class_caption(found))

    def test_boxes(self, shape: tuple[int, int]) -> None:
        values = layers_of(*shape)
        numbers, trend = list(range(shape[0])), depth_trend(values)
        draw = functools.partial(
            box_figure, numbers, values, None, trend, title=TITLE, ylabel=statistic_axis("STD")
        )
        self.check(draw, shape, box_caption(numbers, values, trend, "STD", smoothed=False))

    def test_ranks(self, shape: tuple[int, int], tmp_path: Path) -> None:
        found = rank(heads(tmp_path, "f/m", *shape))
        self.check(functools.partial(rank_figure, found, TITLE), shape, rank_caption(found))

    def test_contrasts(self, shape: tuple[int, int], tmp_path: Path) -> None:
        found = contrast(tmp_path, *shape)
        self.check(functools.partial(contrast_figure, found, TITLE), shape, contrast_caption(found))

    def test_ten_classes_of_many_models(self, tmp_path: Path) -> None:
        names = [f"a-model-of-a-very-long-name-{i}-instruct" for i in range(12)]
        of = [f"family-{i // 2}" for i in range(12)]
        models = [
            heads(tmp_path, f"{family}/{name}", 3, 4, seed=i)
            for i, (family, name) in enumerate(zip(of, names, strict=True))
        ]
        found = taxonomy(models, 10)
        draw = functools.partial(joint_figure, found, names, of, TITLE)
        self.check(draw, SHAPES["126x128"], joint_caption(found))

    @pytest.mark.parametrize("n", [(2, 2), (7, 2)])
    def test_families(self, n: tuple[int, int], tmp_path: Path) -> None:
        found = families(tmp_path, *n)
        draw = functools.partial(family_figure, found, TITLE)
        self.check(draw, SHAPES["126x128"], family_caption(found))


@pytest.mark.parametrize("size", ["one-column", "two-column"])
class TestStudiesOnPaper:
    """All figures of a study, of the size that they say, with a caption each that names n."""

    @pytest.fixture(autouse=True)
    def readable(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def checked(fig: Figure, form: str, page: Page) -> bytes:
            assert_readable(lambda: fig)
            assert page in (ONE_COLUMN, TWO_COLUMN)
            assert fig.get_figwidth() == page.room
            return struct.pack("f", fig.get_figwidth())

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(drawing, "figure_bytes", checked)

    def check(self, written: list[Path]) -> None:
        figures = [path for path in written if path.suffix == ".png"]
        assert figures
        for path in figures:
            assert path.name.endswith((".one-column.png", ".two-column.png"))
            caption = path.with_suffix(".md").read_text()
            assert f"]({path.name})" in caption
            assert re.search(r"n = \d|\d+ (heads?|seeds?|windows?|layers?)", caption), caption

    def test_circuits(self, size: FigureSize) -> None:
        how = FigureFiles(("png",), size)
        model, control = model_circuits(12, 9, 16, n_kv=3), model_circuits(1, 9, 16, n_kv=3)
        table = circuit_table(model)
        self.check(list(write_circuit_figures(model, table, control=control, figures=how)))
        kinds = ["encoder", "decoder"]
        self.check(list(write_circuit_comparison([table, table], kinds=kinds, figures=how)))

    def test_query_norms(self, size: FigureSize) -> None:
        study = planted_study(3, 3)
        self.check(list(write_query_norm(study, figures=FigureFiles(("png",), size))))

    def test_superposition(self, size: FigureSize) -> None:
        run = superposition_run(
            (0.02, 1.0), n=12, m=6, r=4, n_seeds=2, targets=(Target(2, 4, 1.0),)
        )
        written = list(write_superposition(MeasuredRun(run), figures=FigureFiles(("png",), size)))
        self.check(written)


def test_command(tmp_path: Path) -> None:
    heads(tmp_path, "f/m", 6, 4)
    others = [part for name in STATISTICS if name != "STD" for part in ("--skip", name)]
    result = CliRunner().invoke(
        main,
        ["boxplots", *others, "--data-root", str(tmp_path), "--format", "pdf", "--format", "svg",
         "--size", "one-column"],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0
    folder = tmp_path / "plots/f/STD"
    assert {path.name for path in folder.iterdir()} == {
        f"m_STD_box.one-column.{one}" for one in ("pdf", "svg", "md")
    }
    text = (folder / "m_STD_box.one-column.md").read_text()
    assert "4 heads in each of 6 layers" in text
    assert "made/m at revision none" in text
