"""Figures of full circuits: what they show, at any size of model, and that no text covers another.

Warnings are errors here: a glyph that the font lacks, or a layout that collapsed, is a failure.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch
from PIL import Image
from readable import assert_readable
from synthetic_circuits import circuit_table, model_circuits

from qk_taxonomy.figures.circuits.densities import density_figure
from qk_taxonomy.figures.circuits.eigenvalues import eigenvalue_figure
from qk_taxonomy.figures.circuits.glyphs import token_text
from qk_taxonomy.figures.circuits.maps import map_figure
from qk_taxonomy.figures.circuits.scaling import scaling_figure
from qk_taxonomy.figures.circuits.symmetry import SymmetryCourse, symmetry_figure
from qk_taxonomy.figures.circuits.tokens import token_figure
from qk_taxonomy.figures.circuits.unusual import unusual_figure
from qk_taxonomy.outputs.circuits import (
    write_circuit_comparison,
    write_circuit_figures,
)
from qk_taxonomy.studies.circuits.chosen import ChosenHeads, Head, chosen_heads
from qk_taxonomy.studies.circuits.records import ModelCircuits, TokenEnds
from qk_taxonomy.studies.circuits.scaling import WordStudy

pytestmark = pytest.mark.filterwarnings("error")

TITLE = "up-33m (made-up), full circuits over 50257 tokens, folded weights"

# Layers, heads, key-value heads and e: small, grouped, as deep as any, and one head.
SHAPES = {"4x16": (4, 16, 16, 48), "30x9": (30, 9, 3, 16), "126x4": (126, 4, 4, 6),
          "1x1": (1, 1, 1, 6)}  # fmt: skip


@functools.cache
def trained(shape: str) -> ModelCircuits:
    n_layers, n_heads, n_kv, e = SHAPES[shape]
    return model_circuits(n_layers, n_heads, e, n_kv=n_kv)


@functools.cache
def untrained(shape: str) -> ModelCircuits:
    _, n_heads, n_kv, e = SHAPES[shape]
    return model_circuits(1, n_heads, e, n_kv=n_kv, trained=0.0, seed=1)


@functools.cache
def heads(shape: str) -> pd.DataFrame:
    return circuit_table(trained(shape))


def words(table: pd.DataFrame) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for circuit in ("qk", "ov"):
        middle, p = rng.normal(0.1, 0.5, len(table)), rng.uniform(size=len(table)) ** 2
        rows.append(
            table[["layer", "head"]].assign(
                circuit=circuit, scaling=middle, scaling_low=middle - 0.3,
                scaling_high=middle + 0.3, positive_effect=rng.normal(0.2, 0.5, len(table)),
                negative_effect=rng.normal(-0.1, 0.5, len(table)),
                ordering=np.clip(rng.normal(0.1, 0.4, len(table)), -1, 1), p=p,
                q=np.minimum(1, 2 * p),
            )
        )  # fmt: skip
    return pd.concat(rows, ignore_index=True)


#: Tokens of every kind: other scripts, emoji, both directions, controls, mathematics, nothing.
TOKENS = (
    "Ġthe", "$x_{", "中国人民", "🙂", "العربية", " good", "\n\n", "\x00\x07", "a\u0301", "_foo^",
    "\\frac{", " averylongtokenwhichdoesnotfit", "\u200d\u200f", "\ufffd", "", "한국어", "</s>",
    "\ud800", "\u00a0", "$$",
)  # fmt: skip


def ends(numbers: int = 2, n: int = 10) -> list[TokenEnds]:
    scores = np.linspace(1.0, 0.2, n)
    return [
        TokenEnds(
            layer=3, stack="", head=7, circuit="ov", convention="folded", kind="eigenvector",
            number=number, value=-3.2 + 1.1j * (number % 2), side=side,
            top=tuple(zip(TOKENS, scores.tolist(), strict=False)),
            bottom=tuple(zip(TOKENS[::-1], (-scores).tolist(), strict=False)),
        )
        for number in range(1, numbers + 1)
        for side in ("rows", "columns")
    ]  # fmt: skip


def pooled_density(ax: Axes) -> tuple[np.ndarray, np.ndarray]:
    """Heights and edges of the line of all trained heads."""
    (line,) = [one for one in ax.patches if one.get_label().startswith("trained")]
    assert isinstance(line, StepPatch)
    return line.get_data()[:2]


@pytest.mark.parametrize("shape", SHAPES)
class TestAnySize:
    def test_maps(self, shape: str) -> None:
        fig = assert_readable(lambda: map_figure(heads(shape), TITLE))
        images = [ax.images[0] for ax in fig.axes if ax.images]
        assert len(images) == 6
        table = heads(shape)
        for number, name in ((0, "qk_symmetry"), (3, "ov_copying")):
            grid = images[number].get_array()
            assert images[number].get_clim() == (-1.0, 1.0)
            np.testing.assert_array_equal(grid[table["head"], table["layer"]], table[name])
            title = fig.axes[number].get_title()
            median = f"{table[name].median():.2f}".replace("-", "−")
            assert f"median {median}, {len(table)} head" in title
        np.testing.assert_allclose(
            images[5].get_array()[table["head"], table["layer"]],
            table["ov_effective_rank"] / SHAPES[shape][-1],
        )

    def test_eigenvalues(self, shape: str) -> None:
        model, chosen = trained(shape), chosen_heads(heads(shape))
        fig = assert_readable(
            lambda: eigenvalue_figure(
                model, chosen, TITLE, convention="folded", control=untrained(shape)
            )
        )
        shown = [ax for ax in fig.axes if ax.get_visible()]
        assert len(shown) == 2 * sum(len(group.heads) for group in chosen)
        first = chosen[0].heads[0]
        mu = model.select("qk", "folded")[first.layer].eigenvalues[first.head]
        points = shown[0].collections[-1].get_offsets()
        np.testing.assert_allclose(points @ [1, 1j] * np.abs(mu).max(), mu)
        assert f"max |μ| = {np.abs(mu).max():.3g}" in shown[0].get_title()
        for ax in shown:
            assert ax.get_xlim() == ax.get_ylim() == (-ax.get_xlim()[1], ax.get_xlim()[1])
            assert ax.get_aspect() == 1.0

    def test_densities(self, shape: str) -> None:
        model, control = trained(shape), untrained(shape)
        fig = assert_readable(
            lambda: density_figure(model, TITLE, convention="folded", control=control)
        )
        assert len(fig.axes) == 8
        values, edges = pooled_density(fig.axes[0])
        assert (values * np.diff(edges)).sum() == pytest.approx(1.0)
        near_zero = heads(shape)["qk_near_zero"]
        legend = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
        assert f"near zero {near_zero.mean():.1%}" in legend[0]
        assert len(near_zero) == 1 or f"median {near_zero.median():.0%} [" in legend[0]
        assert legend[1].startswith("control: ")

    def test_symmetry(self, shape: str) -> None:
        table = heads(shape)
        fig = assert_readable(lambda: symmetry_figure([SymmetryCourse("up-33m", "", table)], TITLE))
        (line,) = [one for one in fig.axes[0].lines if one.get_label().startswith("up-33m")]
        np.testing.assert_allclose(line.get_ydata(), table.groupby("layer")["qk_symmetry"].median())
        depths = np.linspace(0, 1, SHAPES[shape][0]) if len(table) > 1 else [0.5]
        np.testing.assert_allclose(line.get_xdata(), depths)

    def test_unusual(self, shape: str) -> None:
        table = heads(shape)
        fig = assert_readable(lambda: unusual_figure(table, TITLE))
        for ax, circuit in zip(fig.axes, ("qk", "ov"), strict=True):
            most = table.sort_values(f"{circuit}_unusual").head(12)
            names = {f"{row[f'{circuit}_unusual']}: {row['layer']}.{row['head']}"
                     for row in most.to_dict("records")}  # fmt: skip
            assert {text.get_text() for text in ax.texts} == names
            n_rejected = int((table[f"{circuit}_q"] <= 0.05).sum())
            legend = ax.get_legend().get_texts()
            assert f"q ≤ 0.05 ({n_rejected})" in [one.get_text() for one in legend] or (
                n_rejected == 0
            )

    def test_scaling(self, shape: str) -> None:
        table = words(heads(shape))
        fig = assert_readable(lambda: scaling_figure(table, TITLE, "All heads: 0.12 [0.05, 0.20]"))
        assert len(fig.axes) == 6
        assert fig.get_suptitle().endswith("\nAll heads: 0.12 [0.05, 0.20]")
        qk = table[table["circuit"] == "qk"]
        assert f"{len(qk)} head" in fig.axes[0].get_title()
        median = f"median {qk['scaling'].median():.2f}".replace("-", "−")
        assert median in fig.axes[1].get_title()
        heights = [patch.get_height() for patch in fig.axes[2].patches]
        assert sum(heights) == len(qk)


class TestTokens:
    @pytest.mark.parametrize(
        ("token", "text"),
        [
            (" good", "␣good"),
            ("$x_{", "$x_{"),
            ("中国", "\\u4e2d\\u56fd"),
            ("🙂", "\\U0001f642"),
            ("\n\t\x00", "\\n\\t\\u0000"),
            ("a\u0301", "a\\u0301"),
            ("\u200f", "\\u200f"),
            ("\ud800", "\\ud800"),
            ("\u00a0", "\\u00a0"),
            ("", "(empty)"),
            ("العربية", "العربية"),
            ("abcdefghijklm", "abcdefghijk…"),
            ("ab中国", "ab\\u4e2d…"),
            ("中国abcdefghi", "\\u4e2d…"),
        ],
    )
    def test_what_a_token_is_drawn_as(self, token: str, text: str) -> None:
        assert token_text(token, 12) == text
        assert len(token_text(token, 12)) <= 12

    @pytest.mark.parametrize(("numbers", "n"), [(1, 1), (2, 20), (4, 5)])
    def test_tokens_at_both_ends(self, numbers: int, n: int) -> None:
        fig = assert_readable(lambda: token_figure(ends(numbers, n), "head 3.7, OV"))
        assert len(fig.axes) == 2 * numbers
        ax = fig.axes[0]
        assert ax.get_title() == "eigenvector 1, μ = −3.2 + 1.1i\ntokens written (rows)"
        shown = [text.get_text() for text in ax.texts]
        assert shown[0] == "Ġthe"
        assert len(shown) == len(ax.patches) == 2 * n
        assert ax.patches[0].get_width() == 1.0
        # The lowest of all is at the bottom.
        assert ax.patches[-1].get_width() == -1.0
        assert shown[-1] == token_text(TOKENS[-1], 22)
        assert ax.yaxis_inverted()

    def test_scores_without_a_sign_or_a_value(self) -> None:
        (one,) = ends(1, 2)[:1]
        one = replace(one, kind="singular vector", value=2.5, top=(("a", 0.4), ("b", np.nan)),
                      bottom=(("c", 0.1), ("d", 0.2)))  # fmt: skip
        fig = assert_readable(lambda: token_figure([one], "head 3.7, OV"))
        assert fig.axes[0].get_title().startswith("singular vector 1, σ = 2.5\n")
        assert {text.get_text() for text in fig.axes[0].texts} == {"a", "b", "c", "d"}


class TestWhatIsMissing:
    @pytest.mark.parametrize("circuit", ["qk", "ov"])
    def test_one_circuit_and_no_control(self, circuit: str) -> None:
        model = model_circuits(3, 4, 12, circuits=(circuit,))
        table = circuit_table(model, control=False)
        chosen = chosen_heads(table)
        assert len(assert_readable(lambda: map_figure(table, TITLE)).axes) == 6  # with colour bars
        fig = assert_readable(lambda: density_figure(model, TITLE, convention="folded"))
        assert len(fig.axes) == 4
        fig = assert_readable(lambda: eigenvalue_figure(model, chosen, TITLE, convention="folded"))
        assert len(fig.axes) == sum(4 for _ in chosen)
        (ax,) = assert_readable(lambda: unusual_figure(table, TITLE)).axes
        assert "no control" in ax.get_xlabel()

    def test_values_that_are_not_finite(self) -> None:
        layers = list(model_circuits(3, 4, 12).layers)
        for number, value in ((0, np.nan), (1, 0.0)):
            layer = layers[number]
            sigma, mu = layer.singular_values.copy(), layer.eigenvalues.copy()
            sigma[1], mu[1] = value, value
            layers[number] = replace(layer, singular_values=sigma, eigenvalues=mu)
        model = ModelCircuits(trained("4x16").metadata, tuple(layers))
        with np.errstate(invalid="ignore"):
            table = circuit_table(model)
        table.loc[table.index[2:5], table.columns[table.columns.str.contains("_")]] = np.nan
        assert_readable(lambda: map_figure(table, TITLE))
        chosen = [ChosenHeads("chosen heads", (Head("", 0, 1), Head("", 0, 9), Head("", 8, 0)))]
        fig = assert_readable(lambda: eigenvalue_figure(model, chosen, TITLE, convention="folded"))
        titles = [ax.get_title() for ax in fig.axes]
        assert titles[0] == "head 0.1, n = 12\nno finite μ"
        assert titles[3] == "head 0.1, n = 12\nno μ but zero"
        assert titles[1:3] == ["head 0.9\nnot there", "head 8.0\nnot there"]
        fig = assert_readable(lambda: density_figure(model, TITLE, convention="folded"))
        (text,) = fig.axes[0].get_legend().get_texts()
        assert text.get_text().startswith("trained: 11 heads × 12")
        assert text.get_text().endswith("]; 1 zero or not finite")
        assert_readable(lambda: symmetry_figure([SymmetryCourse("up", "", table)], TITLE))
        fig = assert_readable(lambda: unusual_figure(table, TITLE))
        assert fig.axes[0].get_title().startswith("QK: 9 heads")
        fig = assert_readable(lambda: scaling_figure(words(table).assign(scaling=np.nan), TITLE))
        assert fig.axes[1].get_title() == "QK: scaling, 0 heads"

    def test_nothing_finite_at_all(self) -> None:
        layers = [replace(layer, singular_values=layer.singular_values * np.nan,
                          eigenvalues=layer.eigenvalues * np.nan)
                  for layer in model_circuits(2, 2, 6).layers]  # fmt: skip
        model = ModelCircuits({}, tuple(layers))
        fig = assert_readable(lambda: density_figure(model, TITLE, convention="folded"))
        (text,) = fig.axes[0].get_legend().get_texts()
        assert text.get_text() == "trained: no head with values"
        table = circuit_table(model_circuits(2, 2, 6)).assign(
            qk_symmetry=np.nan, qk_peer_z=np.nan, ov_unusual=np.nan
        )
        fig = assert_readable(lambda: symmetry_figure([SymmetryCourse("up", "", table)], TITLE))
        assert fig.axes[0].get_title() == "0 heads"
        fig = assert_readable(lambda: unusual_figure(table, TITLE))
        assert [text.get_text() for text in fig.axes[0].texts] == ["no head was compared"]

    def test_exact_zeros_are_left_of_the_logarithm(self) -> None:
        """A head of which half the values are zero has half its density in the panel."""
        layer = model_circuits(1, 2, 8, circuits=("qk",)).layers[0]
        sigma = np.tile([1.0, 0.5, 0.2, 0.1, 0, 0, 0, 0], (2, 1))
        model = ModelCircuits({}, (replace(layer, singular_values=sigma),))
        fig = assert_readable(lambda: density_figure(model, TITLE, convention="folded"))
        for ax, share in ((fig.axes[0], 0.5), (fig.axes[1], 0.5 + 1 / 8)):
            values, edges = pooled_density(ax)
            assert (values * np.diff(edges)).sum() == pytest.approx(share)
        (text,) = fig.axes[0].get_legend().get_texts()
        assert "near zero 50.0%,\nmedian 50% [50%, 50%]" in text.get_text()


class TestChosenHeads:
    def test_the_most_unusual_then_the_most_copying_of_the_others(self) -> None:
        table = heads("4x16")
        unusual, copying = chosen_heads(table)
        both = table[["qk_unusual", "ov_unusual"]].min(axis=1)
        kept = table.loc[both.sort_values(kind="stable").index[:4]]
        assert [head[1:] for head in unusual.heads] == list(
            zip(kept["layer"], kept["head"], strict=True)
        )
        others = table.drop(kept.index).sort_values("ov_copying", ascending=False).head(4)
        assert [head[1:] for head in copying.heads] == list(
            zip(others["layer"], others["head"], strict=True)
        )

    def test_a_table_that_tells_nothing_shows_its_first_heads(self) -> None:
        table = heads("4x16")[["stack", "layer", "head"]]
        (group,) = chosen_heads(table, 2)
        assert group.heads == (Head("", 0, 0), Head("", 0, 1))


class TestComparison:
    def test_kinds_have_panels_and_share_a_scale(self) -> None:
        courses = [
            SymmetryCourse(f"model-number-{n}-of-many", kind, circuit_table(
                model_circuits(n_layers, 4, 6, seed=n, circuits=("qk",)), control=n % 2 == 0))
            for n, (n_layers, kind) in enumerate(
                [(6, "encoder"), (12, "encoder"), (30, "decoder"), (126, "decoder"),
                 (1, "decoder"), (4, "decoder"), (2, "decoder")])
        ]  # fmt: skip
        fig = assert_readable(lambda: symmetry_figure(courses, TITLE))
        encoder, decoder = fig.axes
        assert encoder.get_title() == "encoder: 72 heads"
        assert encoder.get_ylim() == decoder.get_ylim()
        legend = [text.get_text() for text in decoder.get_legend().get_texts()]
        assert legend[1] == "model-number-3-of-many: 126 layers, 504 heads"
        assert legend.count("mean of the control's heads") == 1
        assert len(decoder.collections) == 0  # five bands would hide each other
        assert len(encoder.collections) == 2

    def test_files(self) -> None:
        tables = [circuit_table(model_circuits(3, 2, 6, seed=n, circuits=("qk",)), name=name)
                  for n, name in enumerate(("one", "two"))]  # fmt: skip
        ov = circuit_table(model_circuits(2, 2, 6, circuits=("ov",)))
        paths = list(write_circuit_comparison([*tables, ov], kinds=["encoder", "decoder", ""]))
        assert paths == [Path("plots/circuits/comparison.folded_symmetry.png")]
        with Image.open(paths[0]) as image:
            assert image.width > 1000


class TestFilesOfOneModel:
    def write(self, model: ModelCircuits, table: pd.DataFrame, **more: object) -> list[str]:
        """The names of the files, which are where they are said to be and hold an image."""
        names = []
        for path in write_circuit_figures(model, table, "root", **more):
            assert path.parent == Path("root/plots/circuits/made-up")
            with Image.open(path) as image:
                image.verify()
            names.append(path.name)
        return names

    def test_each_figure_when_it_is_there(self) -> None:
        model, table = trained("1x1"), heads("1x1")
        figures = write_circuit_figures(model, table, "root", control=untrained("1x1"))
        first = next(figures)
        caption = first.name.replace(".png", ".md")
        assert {path.name for path in first.parent.iterdir()} == {first.name, caption}
        assert [first.name, *(path.name for path in figures)] == [
            f"up-33m.folded_{kind}.png"
            for kind in ("eigenvalues", "densities", "maps", "unusual", "symmetry")
        ]

    def test_tokens_and_words(self) -> None:
        other = replace(ends(1, 3)[0], circuit="qk", convention="raw")
        series = WordStudy("folded", words(heads("1x1")), {}, ())
        names = self.write(trained("1x1"), heads("1x1"), tokens=[*ends(1, 3), other], words=series)
        assert names[5:] == [
            "up-33m.folded_tokens_3.7_ov.png",
            "up-33m_tokens_3.7_qk.png",
            "up-33m_scaling.png",
        ]

    def test_figures_of_an_earlier_run_are_not_left_beside_new_ones(self) -> None:
        """Whichever heads, circuits and conventions it was of, in whatever format and size."""
        model, table = trained("1x1"), heads("1x1")
        first = self.write(model, table, tokens=ends(1, 3))
        assert "up-33m.folded_tokens_3.7_ov.png" in first
        folder = Path("root/plots/circuits/made-up")
        others = (
            *("up-33m_notes.md", "up-33m_tokens_3.7_qk.ods", "up-33m_tokens.csv"),
            *("up-33m-b_tokens_3.7_qk.png", "up-33m@step1_maps.png", "up-33m_tokens_all.png"),
        )
        earlier = ("up-33m_tokens_0.2_qk.one-column.pdf", "up-33m_maps.svg", "up-33m_scaling.png")
        for name in (*others, *earlier):
            (folder / name).touch()
        before = {path.name for path in folder.iterdir()}
        other = [replace(one, layer=2) for one in ends(1, 3)]
        made = self.write(model, table, tokens=other)
        assert "up-33m.folded_tokens_2.7_ov.png" in made
        assert before - {path.name for path in folder.iterdir()} == {
            *(f"up-33m.folded_tokens_3.7_ov.{ending}" for ending in ("png", "md")),
            *earlier,
        }

    def test_stacks_and_conventions_have_files_of_their_own(self) -> None:
        made = [
            model_circuits(2, 2, 6, stack=stack, convention=convention, circuits=("ov",))
            for stack, convention in (("encoder", "raw"), ("decoder", "folded"))
        ]
        model = ModelCircuits(made[0].metadata, tuple(one for each in made for one in each.layers))
        names = self.write(
            model, circuit_table(model), control=made[0], heads=[Head("decoder", 1, 0)]
        )
        assert names == [
            *(f"up-33m.encoder_{kind}.png" for kind in ("densities", "maps", "unusual")),
            *(f"up-33m.decoder.folded_{kind}.png"
              for kind in ("eigenvalues", "densities", "maps", "unusual")),
        ]  # fmt: skip

    def test_a_table_read_back_from_its_file(self, tmp_path: Path) -> None:
        heads("1x1").to_csv(tmp_path / "table.csv", index=False)
        table = pd.read_csv(tmp_path / "table.csv")
        path = next(write_circuit_figures(trained("1x1"), table, "root"))
        assert path.name == "up-33m.folded_eigenvalues.png"
