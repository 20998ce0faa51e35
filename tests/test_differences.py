"""Two models compared: planted moves, matches recovered, quantised copies, and what is refused."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import gguf
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from planted_heads import heads_of, write_heads
from safetensors.numpy import load_file, save_file
from scipy.spatial.distance import jensenshannon
from scipy.stats import false_discovery_control, wasserstein_distance
from twins import survey_control
from untrained import Shape, untrained_model

from qk_taxonomy.cache import load_spectra
from qk_taxonomy.cli import main
from qk_taxonomy.errors import HypothesisError, NoSuchSpectraError, SpectraFileError
from qk_taxonomy.hypotheses.contrast import matched_contrast
from qk_taxonomy.hypotheses.heads import HeadSet
from qk_taxonomy.records import PREDECESSOR_FORMULA, ModelSpectra
from qk_taxonomy.statistics.moments import effective_rank_lambda
from qk_taxonomy.statistics.moves import MOVES, head_moves
from qk_taxonomy.statistics.shifts import FLIP_GROUPS, FLIP_LAYERS, paired_shifts
from qk_taxonomy.studies.differences.matching import depth_agreement, matched_by_spectra
from qk_taxonomy.studies.differences.study import diff_heads, diff_models
from qk_taxonomy.tables import csv_bytes

ROOT = Path(__file__).resolve().parents[1]
SHAPE = Shape(layers=6, heads=8, kv_heads=8, d_head=32, d_model=128)
Array = NDArray[np.float64]


def qk(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def layered(lam: Array, shape: Shape = SHAPE) -> Array:
    return lam.reshape(shape.layers, shape.heads, -1)


def varied_model(seed: int, shape: Shape = SHAPE) -> Array:
    """λ (layers, heads, d_head) of heads that all differ in shape, as trained ones do."""
    rng = np.random.default_rng(seed)
    decay = rng.uniform(0.02, 0.3, (shape.layers, shape.heads, 1))
    noise = rng.gamma(6.0, 1 / 6, (shape.layers, shape.heads, shape.d_head))
    return -np.sort(-np.exp(-decay * np.arange(shape.d_head)) * noise, axis=-1)


class TestMoves:
    def test_planted_moves_are_told_apart(self, tmp_path: Path) -> None:
        """One head of another scale, one of another shape, and the rest as they were."""
        rng = np.random.default_rng(0)
        before = layered(untrained_model(rng, SHAPE))
        after = before.copy()
        after[1, 3] *= 9.0
        damped = before[4, 2] * np.exp(-0.3 * np.arange(32))
        after[4, 2] = damped * before[4, 2].sum() / damped.sum()
        one, other = (
            heads_of(write_heads(tmp_path, name, lam))
            for name, lam in (("f/a", before), ("f/b", after))
        )
        found = diff_heads(one, other)
        assert found.matching == "place"
        heads = found.heads.set_index(["layer", "head"]).sort_index()
        assert heads.loc[(1, 3), "moved"] == "scale"
        assert heads.loc[(1, 3), "scale"] == pytest.approx(np.log(9), abs=1e-4)
        assert heads.loc[(1, 3), "scale_units"] > 1 > heads.loc[(1, 3), "shape_units"]
        assert heads.loc[(4, 2), "moved"] in ("shape", "rank")
        assert heads.loc[(4, 2), "rank"] < -8
        assert heads.loc[(4, 2), ["shape_units", "rank_units"]].gt(1).all()
        assert heads.loc[(4, 2), "q_untrained"] <= 0.05 < heads["q_untrained"].drop((4, 2)).min()
        assert heads.loc[(4, 2), "scale"] == pytest.approx(0, abs=1e-4)
        still = heads.drop([(1, 3), (4, 2)])
        assert (still[list(MOVES)].abs() < 1e-5).all(axis=None)
        assert set(found.heads["layer"].head(2)) == {1, 4}

    def test_numbers_are_those_of_their_definitions(self, tmp_path: Path) -> None:
        lam = varied_model(1), varied_model(2)
        sets = [heads_of(write_heads(tmp_path, f"f/{i}", x)) for i, x in enumerate(lam)]
        found = diff_heads(*sets)
        normal = [x / x.mean(-1, keepdims=True) for x in lam]
        top = np.quantile(np.stack(normal), 0.96)
        for row in found.heads.iloc[::7].to_dict("records"):
            at = row["layer"], row["head"]
            x, y = (side[at] for side in normal)
            assert row["shape"] == pytest.approx(wasserstein_distance(x, y), rel=1e-4)
            p, q = (np.histogram(v, 24, (0, top))[0] for v in (x, y))
            assert row["jensen_shannon"] == pytest.approx(jensenshannon(p, q) ** 2, rel=1e-4)
            ratio = lam[1][at].sum() / lam[0][at].sum()
            assert row["scale"] == pytest.approx(np.log(ratio), abs=1e-4)
            ranks = [effective_rank_lambda(side[at]) for side in lam]
            assert row["rank"] == pytest.approx(ranks[1] - ranks[0], abs=1e-3)
        # The unit of scale: 1 in 20 pairs of the first model's heads, of two layers, is farther.
        sums = np.log(lam[0].sum(-1))
        apart = [
            abs(sums[a] - sums[b])
            for a, b in itertools.combinations(np.ndindex(*sums.shape), 2)
            if a[0] != b[0]
        ]
        assert found.usual["scale"] == pytest.approx(np.quantile(apart, 0.95), rel=1e-4)
        sizes = found.heads["scale_units"] * found.usual["scale"]
        np.testing.assert_allclose(sizes, found.heads["scale"].abs())
        np.testing.assert_allclose(found.histograms.sum(-1) * np.diff(found.edges)[0], 1.0)

    def test_a_model_and_its_copy(self, tmp_path: Path) -> None:
        lam = varied_model(3)
        one, other = (heads_of(write_heads(tmp_path, name, lam)) for name in ("f/a", "g/a"))
        found = diff_heads(one, other).heads
        assert (found[list(MOVES)] == 0).all(axis=None)
        assert (found["moved"] == "").all()
        assert (found.filter(like="p_") == 1).all(axis=None)

    def test_dead_heads(self) -> None:
        before = varied_model(4).reshape(SHAPE.n, -1)
        after = before.copy()
        before[:2], after[1:3] = 0.0, 0.0
        moves = head_moves(before, after, *SHAPE.places, None)
        assert moves.moves[0, 1] == np.inf
        assert (moves.moves[1] == 0).all()
        assert moves.moves[2, 1] == -np.inf
        assert np.isfinite(moves.usual).all()
        assert not np.isnan(moves.in_units).any()
        assert np.isnan(moves.p_untrained).all()

    def test_one_head_has_no_unit(self, tmp_path: Path) -> None:
        one, other = (
            heads_of(write_heads(tmp_path, f"f/{i}", varied_model(i)[:1, :1])) for i in (5, 6)
        )
        found = diff_heads(one, other)
        assert found.heads["scale"].notna().all()
        assert found.heads[["shape_units", "scale_units", "rank_units"]].isna().all(axis=None)
        assert (found.heads["moved"] == "").all()

    @pytest.mark.parametrize(
        ("spread", "low", "high"), [(0.0, 0.03, 0.07), (1.0, 0.005, 0.03)], ids=["alike", "differ"]
    )
    def test_units_between_models_drawn_apart(self, spread: float, low: float, high: float) -> None:
        """One head in twenty exceeds a unit where layers are of one law; fewer where they differ.

        spread: of layers' scale (ln Σλ) and decay, in units of that within layers.
        """
        rng = np.random.default_rng(7)
        beyond = np.mean(
            [
                (head_moves(*_drawn_apart(rng, spread), *SHAPE.places, None).in_units > 1).mean(0)
                for _ in range(60)
            ],
            axis=0,
        )
        assert ((beyond > low) & (beyond < high)).all(), beyond


def _drawn_apart(rng: np.random.Generator, spread: float) -> tuple[Array, Array]:
    """λ (heads, d_head) of two models with the same layers, and heads drawn anew in either."""
    n_layers, n_heads = SHAPE.layers, SHAPE.heads
    layers = spread * rng.standard_normal((2, n_layers, 1))
    sides = []
    for _ in range(2):
        scale, decay = layers + rng.standard_normal((2, n_layers, n_heads))
        lam = untrained_model(rng, SHAPE)
        decays = 0.05 * np.exp(0.5 * decay.reshape(-1, 1)) * np.arange(SHAPE.d_head)
        sides.append(lam * np.exp(0.5 * scale.reshape(-1, 1) - decays))
    return sides[0], sides[1]


class TestShifts:
    """All heads together."""

    @pytest.fixture
    def sides(self, tmp_path: Path) -> tuple[HeadSet, ...]:
        lam = varied_model(30, SHAPE)
        grown = lam * np.exp(0.01 + 0.01 * np.random.default_rng(30).random((6, 8, 1)))
        return tuple(
            heads_of(write_heads(tmp_path, name, x)) for name, x in (("f/a", lam), ("f/b", grown))
        )

    def test_a_small_shift_of_all_heads_is_found(self, sides: tuple[HeadSet, HeadSet]) -> None:
        """No head moves by a fiftieth of what heads differ, and all of them do in one direction."""
        found = diff_heads(*sides)
        assert (found.heads["scale_units"] < 0.02).all()
        shifts = found.shifts.set_index("statistic")
        scale = shifts.loc["MEAN"]
        assert scale["effect"] == pytest.approx(1.0)
        assert scale["n"] == 6
        # Two of the 2⁶ ways to give layers a sign are as extreme.
        assert scale["p_value"] == pytest.approx(2 / 64, abs=0.006)
        assert shifts.loc["effective_rank_lambda", "n"] == 6

    def test_it_is_the_test_of_contrasts(self, sides: tuple[HeadSet, HeadSet]) -> None:
        first, second = sides
        overall = matched_contrast("c", "named", second, first).overall.reset_index(drop=True)
        pd.testing.assert_frame_equal(diff_heads(first, second).shifts, overall)

    def test_few_layers_have_key_value_groups_as_units(self, tmp_path: Path) -> None:
        lam = varied_model(31)[:2]
        sides = (
            heads_of(write_heads(tmp_path, name, x, n_kv_heads="4"))
            for name, x in (("f/a", lam), ("f/b", 1.1 * lam))
        )
        shifts = diff_heads(*sides).shifts.set_index("statistic")
        assert shifts.loc["MEAN", "n"] == 8
        assert shifts.loc["MEAN", "p_value"] == pytest.approx(2 / 2**8, abs=0.003)
        tested = shifts["q_value"].dropna()
        assert tested.to_numpy() == pytest.approx(
            false_discovery_control(shifts["p_value"].dropna())
        )

    def test_heads_matched_by_spectra_are_not_tested(self, sides: tuple[HeadSet, HeadSet]) -> None:
        """They were chosen for being near."""
        found = diff_heads(*sides, match="spectra")
        assert found.heads[["p_untrained", "q_untrained"]].isna().all(axis=None)
        assert found.shifts["p_value"].isna().all()
        assert found.shifts["note"].tolist() == ["heads are matched by their spectra"]
        assert any("no p- or q-values" in note for note in found.notes)

    def test_layers_whose_heads_move_together(self) -> None:
        """Flips of whole layers keep their level, which flips of groups do not."""
        rng = np.random.default_rng(32)
        p_values: dict[str, list[float]] = {FLIP_LAYERS: [], FLIP_GROUPS: []}
        layers, groups = SHAPE.places
        for repeat in range(300):
            together = rng.standard_normal((SHAPE.layers, 1)) + rng.standard_normal(
                (SHAPE.layers, SHAPE.heads)
            )
            for shift in paired_shifts(
                together.reshape(-1, 1), layers, groups, permutations=199, seed=repeat
            ):
                if shift.layer is None and shift.finding.method in p_values:
                    p_values[shift.finding.method].append(shift.finding.p_value)
        rejected = {method: np.mean(np.array(p) <= 0.05) for method, p in p_values.items()}
        assert rejected[FLIP_LAYERS] <= 0.08
        assert rejected[FLIP_GROUPS] > 0.2


class TestMatching:
    def test_a_deeper_model_with_its_heads_in_another_order(self, tmp_path: Path) -> None:
        """Every head of a model finds its noisy copy in one of twice its layers."""
        rng = np.random.default_rng(8)
        lam = varied_model(8).reshape(SHAPE.n, -1)
        deep = np.concatenate([lam, varied_model(9).reshape(SHAPE.n, -1)])
        deep = -np.sort(-deep * np.exp(0.003 * rng.standard_normal(deep.shape)), axis=-1)
        order = rng.permutation(len(deep))
        one = heads_of(write_heads(tmp_path, "f/a", layered(lam)))
        other = heads_of(write_heads(tmp_path, "f/b", deep[order].reshape(12, 8, -1)))
        found = diff_heads(one, other)
        assert found.matching == "spectra"
        assert found.unmatched == (0, 48)
        assert "48 heads of f/b" in found.notes[0]
        wanted = np.argsort(order)[8 * found.heads["layer"] + found.heads["head"]]
        recovered = (8 * found.heads["layer_b"] + found.heads["head_b"]) == wanted
        assert recovered.mean() > 0.9
        # And the other way: 48 heads of the larger one stay alone.
        assert diff_heads(other, one).unmatched == (48, 0)

    def test_the_least_total_divergence(self, tmp_path: Path) -> None:
        """Against all ways to match 4 heads with 5."""
        few, more = varied_model(10)[:2, :2], varied_model(11)[:1, :5]
        one, other = (
            heads_of(write_heads(tmp_path, name, lam))
            for name, lam in (("f/a", few), ("f/b", more))
        )
        x, y = (heads.lam / heads.lam.mean(-1, keepdims=True) for heads in (one, other))
        top = np.quantile(np.concatenate([x, y]), 0.96)
        p, q = ([np.histogram(v, 24, (0, top))[0] for v in side] for side in (x, y))
        costs = np.array([[jensenshannon(a, b) ** 2 for b in q] for a in p])
        ways = list(itertools.permutations(range(5), 4))
        least = min(costs[range(4), way].sum() for way in ways)
        matched = matched_by_spectra(one, other)
        assert costs[matched.first, matched.second].sum() == pytest.approx(least)

    def test_depth_decides_between_equal_spectra(self, tmp_path: Path) -> None:
        """All heads are alike, and 6 layers are matched with every other of 11."""
        head = varied_model(12)[0, 0]
        one = heads_of(write_heads(tmp_path, "f/a", np.tile(head, (6, 1, 1))))
        other = heads_of(write_heads(tmp_path, "f/b", np.tile(head, (11, 1, 1))))
        heads = diff_heads(one, other, match="spectra").heads.sort_values("layer")
        assert heads["layer_b"].tolist() == [0, 2, 4, 6, 8, 10]

    def test_depths_of_matches_are_tested_by_layers(self, tmp_path: Path) -> None:
        """A statistic that rises with depth in both models is found; chance is in one of twenty."""
        rng = np.random.default_rng(13)
        layers = np.repeat(np.arange(12), 4)
        depth = layers / 11
        found = depth_agreement(depth, layers, depth)
        assert found.effect == pytest.approx(1)
        assert found.p_value < 0.001
        assert found.n == 12
        p_values = []
        for _ in range(200):
            # Heads of a layer find matches in one layer, whichever it is.
            other = np.repeat(rng.permutation(12), 4)
            p_values.append(depth_agreement(depth, other, other / 11).p_value)
        assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.09
        few = depth_agreement(depth[:12], layers[:12], depth[:12])
        assert np.isnan(few.p_value)
        assert "3 layers" in few.note
        flat = depth_agreement(np.zeros(4), layers[:4], depth[:4])
        assert np.isnan(flat.effect)

    def test_auto_matches_other_architectures_by_spectra(self, tmp_path: Path) -> None:
        lam = varied_model(14)
        one = heads_of(write_heads(tmp_path, "f/a", lam))
        other = heads_of(write_heads(tmp_path, "f/b", lam[:, ::-1], architecture="gpt2"))
        assert diff_heads(one, other).matching == "spectra"
        assert diff_heads(one, other, match="place").matching == "place"


class TestRefused:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        write_heads(tmp_path, "f/a", varied_model(15))
        return tmp_path

    def test_conventions(self, root: Path) -> None:
        path = write_heads(root, "f/folded", varied_model(16), convention="folded")
        with pytest.raises(NoSuchSpectraError, match="has no qk raw spectra, but qk folded"):
            diff_models("a", "f/folded", root)
        with pytest.raises(NoSuchSpectraError, match=r"f.a\.safetensors has no qk folded.*qk raw"):
            diff_models(str(path), "a", root, convention="folded")
        sides = heads_of(root / "data/f/a.safetensors"), heads_of(path, convention="folded")
        with pytest.raises(HypothesisError, match="two conventions"):
            diff_heads(*sides)

    def test_formulas(self, root: Path) -> None:
        formula = f'{{"formula": "{PREDECESSOR_FORMULA}"}}'
        write_heads(root, "f/old", varied_model(17), provenance=formula)
        with pytest.raises(HypothesisError, match="predecessor's numbers"):
            diff_models("f/a", "f/old", root)
        found = diff_models("f/a", "f/old", root, include_imported=True)
        assert len(found.table) == SHAPE.n

    def test_shapes(self, root: Path) -> None:
        write_heads(root, "f/narrow", varied_model(18)[..., :16])
        with pytest.raises(HypothesisError, match="d_head 32, f/narrow of 16"):
            diff_models("f/a", "f/narrow", root)
        write_heads(root, "f/shallow", varied_model(18)[:3])
        with pytest.raises(HypothesisError, match=r"6 layers × 8 heads.*3 layers.*--match spectra"):
            diff_models("f/a", "f/shallow", root, match="place")

    def test_names(self, root: Path) -> None:
        with pytest.raises(HypothesisError, match="are one file"):
            diff_models("a", str(root / "data/f/a.safetensors"), root)
        with pytest.raises(HypothesisError, match="No surveyed model is called 'b'"):
            diff_models("a", "b", root)
        for step in (0, 1, 112, 1000, 2):
            write_heads(root, f"h/m@step{step}", varied_model(19))
        with pytest.raises(
            HypothesisError, match=r"step0, .*step1, .*step2, .*step112, .*step1000"
        ):
            diff_models("a", "m", root)
        write_heads(root, "g/a", varied_model(19))
        with pytest.raises(HypothesisError, match="any of f/a, g/a"):
            diff_models("a", "g/a", root)
        # A model's id, which files tell only inside.
        write_heads(root, "g/c", varied_model(19), model_id="org/C")
        assert diff_models("f/a", "org/C", root).stacks[0].second.file == "g/c"
        for step in (1, 10):
            lam = varied_model(19 + step)
            write_heads(root, f"g/d@step{step}", lam, model_id="org/D")
        assert diff_models("f/a", "org/D@step1", root).stacks[0].second.file == "g/d@step1"
        with pytest.raises(HypothesisError, match="any of g/d@step1, g/d@step10"):
            diff_models("f/a", "org/D", root)
        with pytest.raises(SpectraFileError, match="There is no spectra file nowhere"):
            diff_models("f/a", "nowhere.safetensors", root)
        (root / "data/f/broken.safetensors").write_bytes(b"not a file of tensors")
        with pytest.raises(SpectraFileError, match=r"broken\.safetensors is damaged"):
            diff_models("f/a", "f/broken", root)

    def test_of_files_that_are_not_named_the_metadata_alone_is_read(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_heads(root, "g/c", varied_model(19), model_id="org/C")
        write_heads(root, "g/d", varied_model(20), model_id="org/D")
        read: list[str] = []

        def noted(path: Path) -> ModelSpectra:
            read.append(Path(path).stem)
            return load_spectra(path)

        monkeypatch.setattr("qk_taxonomy.hypotheses.heads.load_spectra", noted)
        diff_models("f/a", "org/C", root)
        assert read == ["a", "c"]
        with pytest.raises(HypothesisError, match=r"called 'org/E'\. There are f/a, g/c, g/d\."):
            diff_models("f/a", "org/E", root)
        assert read == ["a", "c", "a"]

    def test_stacks(self, root: Path) -> None:
        write_heads(root, "f/encoder", varied_model(20), stack="encoder")
        with pytest.raises(HypothesisError, match="first has a single one, the second encoder"):
            diff_models("f/a", "f/encoder", root)


# Not among the surveyed models, of which no test or joint taxonomy is to count it as another.
REQUANTISED = str(
    ROOT / "data/differences/smollm2-gguf/SmolLM2-135M-Instruct.Q4_1-as-Q4_0.safetensors"
)


def real_model(name: str) -> Path:
    return ROOT / "data/rxnfp" / f"{name}.safetensors"


class TestRealModels:
    def test_tuning_rxnfp_shrank_all_heads_a_little(self) -> None:
        """Far less than its heads are apart, and all in one direction."""
        found = diff_models(str(real_model("bert_pretrained")), str(real_model("bert_ft")))
        (stack,) = found.stacks
        assert stack.matching == "place"
        assert (found.table[[f"{name}_units" for name in MOVES]] < 0.2).all(axis=None)
        assert (found.table["scale"] < 0).all()
        scale = found.shifts.set_index("statistic").loc["MEAN"]
        assert scale["effect"] == pytest.approx(-1)
        assert scale["q_value"] < 0.01

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ("rxnfp/bert_pretrained", "rxnfp/bert_ft"),
            ("rxnfp/bert_pretrained", "rxnfp/bert_ft_10k_25s"),
            ("smollm2-gguf/SmolLM2-135M-Instruct.Q4_1", REQUANTISED),
        ],
        ids=["bert_ft", "bert_ft_10k_25s", "requantised"],
    )
    def test_committed_tables_are_those_of_committed_spectra(self, first: str, second: str) -> None:
        found = diff_models(first, second, ROOT)
        (stack,) = found.stacks
        name = f"{stack.first.model}-to-{stack.second.model}"
        folder = ROOT / "plots/differences" / stack.first.family
        for table, suffix in ((found.table, ".csv"), (found.shifts, ".shifts.csv")):
            committed = pd.read_csv(folder / f"{name}{suffix}")
            again = pd.read_csv(io.BytesIO(csv_bytes(table)))
            pd.testing.assert_frame_equal(committed, again, rtol=1e-3, atol=1e-6)

    def test_quantised_copies(self, minilm: Path, tmp_path: Path) -> None:
        """Real weights at 8 and at 4 bits: half the bits move heads more than five times as far,
        and still by less than a tenth of what heads are apart.
        """
        tensors = load_file(minilm / "model.safetensors")
        config = (minilm / "config.json").read_text()
        paths = {}
        for kind in ("F32", "Q8_0", "Q4_0"):
            folder = tmp_path / kind
            folder.mkdir()
            kept = {k: v for k, v in tensors.items() if "attention" in k}
            paths[kind] = folder
            _write_quantised(folder, kept, config, kind)
        files = {
            kind: survey_control(folder, None, output_root=tmp_path).path
            for kind, folder in paths.items()
        }
        moves = {
            kind: diff_models(str(files["F32"]), str(files[kind])).table
            for kind in ("Q8_0", "Q4_0")
        }
        for name in MOVES:
            small, large = (moves[kind][f"{name}_units"].median() for kind in ("Q8_0", "Q4_0"))
            assert 0 < 5 * small < large < 0.1, name
        assert (moves["Q8_0"]["jensen_shannon"] < 0.02).all()


def _write_quantised(
    folder: Path, tensors: dict[str, NDArray[np.float32]], config: str, kind: str
) -> None:
    def rounded(weights: NDArray[np.float32]) -> NDArray[np.float32]:
        if kind == "F32" or weights.ndim != 2:
            return weights
        how = gguf.GGMLQuantizationType[kind]
        return np.asarray(gguf.quants.dequantize(gguf.quants.quantize(weights, how), how))

    folder.joinpath("config.json").write_text(config)
    save_file({name: rounded(x) for name, x in tensors.items()}, folder / "model.safetensors")


class TestCommand:
    def test_files_and_lines(self, tmp_path: Path) -> None:
        lam = varied_model(21)
        write_heads(tmp_path, "f/a", lam)
        write_heads(tmp_path, "f/b", lam * 2.0)
        done = qk("diff", "f/a", "b", "--data-root", tmp_path)
        assert done.exit_code == 0, done.output
        assert "48 heads matched by place" in done.stdout
        assert "moved most (layer.head): " in done.stdout
        shift = "scale, ln Σλ: +0.693 in the median; r = +1.00 ["
        assert shift in done.stdout
        share = pd.read_csv(tmp_path / "plots/differences/f/a-to-b.csv")["scale_units"].median()
        assert f"    scale: {100 * share:.0f} % in the median" in done.stdout
        # Twice as large in scale alone; MEAN stands above them.
        others = "MIN: smallest λ (+1.00), MAX: largest λ (+1.00), STD: standard deviation of λ ("
        assert f"found to have shifted (r, q ≤ 0.05): {others}" in done.stdout
        assert "by a finer yardstick, the shape of 0 of 48 moved farther" in done.stdout
        folder = tmp_path / "plots/differences/f"
        table = pd.read_csv(folder / "a-to-b.csv")
        np.testing.assert_allclose(table["scale"], np.log(2), atol=1e-4)
        assert (folder / "a-to-b.png").stat().st_size > 20_000
        assert str(folder / "a-to-b.csv") in done.stdout
        shifts = pd.read_csv(folder / "a-to-b.shifts.csv").set_index("statistic")
        assert shifts.loc["MEAN", "effect"] == 1
        assert shifts["p_value"].notna().sum() == 4

    def test_two_models_that_are_alike_are_not_said_to_be_tested(self, tmp_path: Path) -> None:
        for name in ("f/a", "f/b"):
            write_heads(tmp_path, name, varied_model(26))
        done = qk("diff", "f/a", "f/b", "--data-root", tmp_path)
        assert "all heads together: not tested (0 of 6 units differ" in done.stdout
        assert "moved most (layer.head): none" in done.stdout

    def test_models_of_two_families_and_depths(self, tmp_path: Path) -> None:
        write_heads(tmp_path, "f/a", varied_model(22))
        write_heads(tmp_path, "g/a", varied_model(23)[:3], convention="raw")
        done = qk("diff", "f/a", "g/a", "--data-root", tmp_path)
        assert done.exit_code == 0, done.output
        assert "correlation of matched heads' depths" in done.stdout
        assert "all heads together: not tested (heads are matched by their spectra)" in done.stdout
        assert "untrained heads are apart" not in done.stdout
        assert "Note: without a match: 24 heads of f/a" in done.stderr
        assert (tmp_path / "plots/differences/f/a-to-g.a.png").is_file()

    def test_what_cannot_be_compared_is_said_in_a_paragraph(self, tmp_path: Path) -> None:
        write_heads(tmp_path, "f/a", varied_model(24))
        write_heads(tmp_path, "f/b", varied_model(25), convention="folded")
        done = qk("diff", "f/a", "f/b", "--data-root", tmp_path)
        assert done.exit_code == 1
        assert done.stderr.startswith("Error: ")
        assert "Traceback" not in done.output
        assert not (tmp_path / "plots").exists()
