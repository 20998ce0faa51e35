"""Taxonomies of many models, their files, and heads assigned to them."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted import layer_of, model_of, planted_layers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from qk_taxonomy import (
    assign_heads,
    classify_heads,
    generate_assignments,
    generate_joint_taxonomy,
    joint_taxonomy,
    load_taxonomy,
    save_taxonomy,
)
from qk_taxonomy.cache import write_spectra
from qk_taxonomy.errors import CatalogError, NoSuchSpectraError, PartialFailureError, TaxonomyError
from qk_taxonomy.records import DISTANCES, Distance, ModelSpectra
from qk_taxonomy.taxonomy import SavedTaxonomy
from qk_taxonomy.taxonomy.assign import nearest_classes


def two_models() -> list[ModelSpectra]:
    """The same three kinds of heads in two models of other d_head."""
    return [
        model_of(planted_layers(3, d_head=128), "me/a"),
        model_of(planted_layers(2, d_head=256, seed=1), "me/b", family="yours"),
    ]


class TestJointTaxonomy:
    @pytest.mark.parametrize("distance", DISTANCES)
    def test_kinds_are_common_to_models_of_other_widths(self, distance: Distance) -> None:
        taxonomy = joint_taxonomy(two_models(), n_clusters=3, distance=distance)
        np.testing.assert_array_equal(taxonomy.labels, 2 - taxonomy.heads % 3)
        assert np.bincount(taxonomy.models).tolist() == [36, 24]
        assert [source.model_id for source in taxonomy.saved.models] == ["me/a", "me/b"]
        assert taxonomy.saved.formulas == ("exact",)

    def test_the_order_of_models_does_not_matter(self) -> None:
        models = two_models()
        forward, backward = (joint_taxonomy(x, n_clusters=5) for x in (models, models[::-1]))
        np.testing.assert_array_equal(forward.labels, backward.labels)
        np.testing.assert_array_equal(forward.models, 1 - backward.models)

    @pytest.mark.parametrize("distance", DISTANCES)
    def test_of_one_model_it_is_that_model_s(self, distance: Distance) -> None:
        model = two_models()[0]
        joint = joint_taxonomy([model], n_clusters=5, distance=distance)
        alone = classify_heads(model.layers, n_clusters=5, distance=distance)
        np.testing.assert_array_equal(joint.labels, alone.labels)
        np.testing.assert_array_equal(joint.map, alone.map)

    @pytest.mark.parametrize("distance", DISTANCES)
    def test_identical_models_have_identical_classes(self, distance: Distance) -> None:
        model = two_models()[0]
        taxonomy = joint_taxonomy([model, model, model], n_clusters=6, distance=distance)
        thirds = np.split(taxonomy.labels, 3)
        np.testing.assert_array_equal(thirds[0], thirds[1])
        np.testing.assert_array_equal(thirds[0], thirds[2])
        assert taxonomy.saved.n_heads.min() >= 3

    def test_one_head_a_layer_and_dead_heads(self) -> None:
        narrow = model_of([layer_of(np.full((1, 8), 2.0 + i), i) for i in range(4)], "me/narrow")
        dead = model_of(planted_layers(1), "me/dead")
        dead.layers[0].singular_values[:3] = 0
        taxonomy = joint_taxonomy([*two_models(), narrow, dead], n_clusters=6)
        assert len(taxonomy.labels) == 36 + 24 + 4 + 12
        assert len(set(taxonomy.labels[taxonomy.models == 2])) == 1
        assert len(set(taxonomy.labels[taxonomy.models == 3][:3])) == 1

    def test_controls_and_imports_are_left_out(self) -> None:
        exact, other = two_models()
        control = replace(other, metadata=model_of(other.layers, control="random-0").metadata)
        imported = model_of(other.layers, "me/old", imported=True)
        models = [imported, control, exact]
        assert set(joint_taxonomy(models, n_clusters=3).models) == {2}
        both = joint_taxonomy(models, n_clusters=3, include_imported=True)
        assert set(both.models) == {0, 2}
        assert both.saved.formulas == ("exact", "predecessor")
        assert set(joint_taxonomy([imported, control], n_clusters=3).models) == {0}

    def test_other_circuits_are_refused(self) -> None:
        other = model_of(planted_layers(circuit="ov"), "me/ov")
        with pytest.raises(TaxonomyError, match="me/ov has no qk raw spectra"):
            joint_taxonomy([two_models()[0], other])
        with pytest.raises(TaxonomyError, match="no spectra of this circuit"):
            joint_taxonomy([])


@pytest.fixture(params=DISTANCES)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[SavedTaxonomy, Path]:
    """A joint taxonomy of five classes and its file."""
    taxonomy = joint_taxonomy(two_models(), n_clusters=5, distance=request.param)
    path = save_taxonomy(tmp_path / "t.taxonomy.safetensors", taxonomy.saved)
    return taxonomy.saved, path


class TestFile:
    def test_round_trip(self, saved: tuple[SavedTaxonomy, Path]) -> None:
        taxonomy, path = saved
        read = load_taxonomy(path)
        for name in ("centres", "edges", "radii", "n_heads"):
            np.testing.assert_array_equal(getattr(read, name), getattr(taxonomy, name))
        for name in ("circuit", "convention", "distance", "seed", "narrowest", "models"):
            assert getattr(read, name) == getattr(taxonomy, name)
        first = path.read_bytes()
        assert save_taxonomy(path, read).read_bytes() == first
        assert len(first) < 6000
        assert os.listdir(path.parent).count(path.name) == 1
        assert not [name for name in os.listdir(path.parent) if name.startswith(".t")]

    def test_metadata(self, saved: tuple[SavedTaxonomy, Path]) -> None:
        with safe_open(saved[1], framework="numpy") as file:
            metadata = file.metadata()
        assert metadata["format"] == "qk-taxonomy-taxonomy"
        assert metadata["format_version"] == "1"
        assert metadata["formula"] == "exact"
        assert json.loads(metadata["models"])[1] == {
            "family": "yours", "model_id": "me/b", "revision": "abc", "formula": "exact",
        }  # fmt: skip

    def test_radii_hold_99_percent_of_a_class(self, saved: tuple[SavedTaxonomy, Path]) -> None:
        taxonomy = saved[0]
        distances = {number: [] for number in range(5)}
        for model in two_models():
            assigned = assign_heads(taxonomy, model)
            for number, distance in zip(assigned.labels, assigned.distances, strict=True):
                distances[number].append(distance)
        # Classes of at most a hundred heads: the farthest one's distance.
        np.testing.assert_array_equal(taxonomy.radii, [max(x) for x in distances.values()])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": "qk-taxonomy-spectra"}, "not a taxonomy file.*found qk-taxonomy-spectra"),
            ({"format_version": "2"}, "format version 2, this program reads 1"),
            ({"circuit": "kq"}, "circuit 'kq' is none of qk, ov"),
            ({"distance": "cosine"}, "distance 'cosine' is none of"),
            ({"seed": "one"}, "damaged"),
            ({"models": "[{}]"}, "damaged"),
            ({"models": "["}, "damaged"),
            ({"formula": None}, "lacks formula"),
        ],
    )
    def test_other_metadata(
        self, saved: tuple[SavedTaxonomy, Path], change: dict[str, str | None], message: str
    ) -> None:
        path = saved[1]
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() | change
        kept = {key: value for key, value in metadata.items() if value is not None}
        save_file(load_file(path), path, metadata=kept)
        with pytest.raises(TaxonomyError, match=message):
            load_taxonomy(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"edges": np.linspace(0, 1, 20)}, r"centres \(5, 24\) do not fit 19 bins"),
            ({"edges": np.ones(25)}, "edges do not ascend"),
            ({"radii": np.ones(4)}, "not those of 5 classes"),
            ({"radii": np.full(5, np.nan)}, "radii are not finite"),
            ({"centres": -np.ones((5, 24))}, "centres are not finite numbers from 0 on"),
            ({"centres": np.ones((5, 24), dtype=np.float32)}, "of dtype float64"),
            ({"more": np.ones(2)}, "wanted tensors centres, edges, radii, n_heads, found"),
        ],
    )
    def test_other_tensors(
        self, saved: tuple[SavedTaxonomy, Path], change: dict[str, np.ndarray], message: str
    ) -> None:
        path = saved[1]
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
        save_file(load_file(path) | change, path, metadata=metadata)
        with pytest.raises(TaxonomyError, match=message):
            load_taxonomy(path)

    def test_damaged_and_missing(self, saved: tuple[SavedTaxonomy, Path]) -> None:
        path = saved[1]
        whole = path.read_bytes()
        for part in (whole[:100], whole[:-8], b"", b"no"):
            path.write_bytes(part)
            with pytest.raises(TaxonomyError, match="is damaged, or no taxonomy file"):
                load_taxonomy(path)
        path.unlink()
        with pytest.raises(TaxonomyError, match="There is no taxonomy file"):
            load_taxonomy(path)

    def test_a_spectra_file_is_no_taxonomy(self, tmp_path: Path) -> None:
        write_spectra(tmp_path / "x.safetensors", two_models()[0])
        with pytest.raises(TaxonomyError, match=r"found qk-taxonomy-spectra.*cluster"):
            load_taxonomy(tmp_path / "x.safetensors")


class TestAssign:
    @pytest.mark.parametrize("distance", DISTANCES)
    @pytest.mark.parametrize("n_clusters", [1, 3, 6, 10])
    def test_its_own_models_get_their_classes_back(
        self, tmp_path: Path, distance: Distance, n_clusters: int
    ) -> None:
        models = two_models()
        taxonomy = joint_taxonomy(models, n_clusters=n_clusters, distance=distance)
        read = load_taxonomy(save_taxonomy(tmp_path / "t", taxonomy.saved))
        for index, model in enumerate(models):
            assigned = assign_heads(read, model)
            own = taxonomy.models == index
            np.testing.assert_array_equal(assigned.labels, taxonomy.labels[own])
            assert not assigned.beyond.any()

    @pytest.mark.parametrize("distance", DISTANCES)
    def test_new_heads_of_known_and_of_new_kinds(self, distance: Distance) -> None:
        taxonomy = joint_taxonomy(two_models(), n_clusters=3, distance=distance).saved
        known = assign_heads(taxonomy, model_of(planted_layers(d_head=128, seed=7)))
        np.testing.assert_array_equal(known.labels, 2 - known.pool.heads % 3)
        assert known.beyond.mean() < 0.2
        new = assign_heads(taxonomy, model_of(planted_layers(d_head=128, shapes=(200.0,))))
        assert set(new.labels) == {0}
        assert new.beyond.all()

    def test_distances_by_hand(self) -> None:
        taxonomy = joint_taxonomy(two_models(), n_clusters=3)
        assigned = assign_heads(taxonomy.saved, two_models()[0])
        x, centres = taxonomy.space.histograms[:36], taxonomy.saved.centres
        by_hand = np.linalg.norm(x[:, None] - centres, axis=-1).min(1)
        np.testing.assert_allclose(assigned.distances, by_hand, rtol=1e-12)

    def test_refusals(self) -> None:
        taxonomy = joint_taxonomy(two_models(), n_clusters=3).saved
        other = model_of(planted_layers(convention="folded"), "me/folded")
        with pytest.raises(NoSuchSpectraError, match=r"is of qk raw .* me/folded has qk folded"):
            assign_heads(taxonomy, other)
        imported = model_of(planted_layers(), "me/old", imported=True)
        with pytest.raises(NoSuchSpectraError, match=r"me/old .* another formula \(predecessor\)"):
            assign_heads(taxonomy, imported)
        mixed = joint_taxonomy([two_models()[0], imported], n_clusters=3, include_imported=True)
        assert len(assign_heads(mixed.saved, imported).labels) == 48
        with pytest.raises(TaxonomyError, match=r"wants histograms \(heads, 24\).*\(7, 16\)"):
            nearest_classes(taxonomy, np.ones((7, 16)))

    def test_a_taxonomy_of_layers_takes_any_formula(self) -> None:
        taxonomy = classify_heads(planted_layers(), n_clusters=3).saved
        assert taxonomy.models == ()
        imported = model_of(planted_layers(), imported=True)
        assert len(assign_heads(taxonomy, imported).labels) == 48

    def test_more_heads_than_medoids_take(self, monkeypatch: pytest.MonkeyPatch) -> None:
        taxonomy = joint_taxonomy(two_models(), n_clusters=3, distance="jensen-shannon").saved
        monkeypatch.setattr("qk_taxonomy.taxonomy.spaces.MOST_MEDOID_HEADS", 10)
        assert len(assign_heads(taxonomy, two_models()[0]).labels) == 36


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def put(*models: ModelSpectra) -> None:
    for model in models:
        name = model.model_id.rpartition("/")[2]
        write_spectra(Path("data") / model.family / f"{name}.safetensors", model)


class TestOutputs:
    def test_files_and_their_columns(self) -> None:
        stacks = [*planted_layers(1, stack="decoder"), *planted_layers(1, stack="encoder")]
        put(*two_models(), model_of(stacks, "me/c", family="mine"))
        lines: list[str] = []
        written = generate_joint_taxonomy(n_clusters=3, report=lines.append)
        assert {path.name for path in written} == {
            f"mine+yours.{suffix}"
            for suffix in (
                *("png", "csv", "classes.csv", "composition.csv", "agreement.csv"),
                "taxonomy.safetensors",
            )
        }
        caption = Path("ESDs/joint/mine+yours.md")
        assert sorted(Path("ESDs/joint").iterdir()) == sorted([*written, caption])
        table = rows(Path("ESDs/joint/mine+yours.csv"))
        assert list(table[0]) == [
            *("family", "model", "stack", "layer", "head", "class", "umap_x", "umap_y"),
        ]
        assert len(table) == 36 + 24 + 24
        assert {row["stack"] for row in table if row["model"] == "c"} == {"decoder", "encoder"}
        assert all(int(row["class"]) == 2 - int(row["head"]) % 3 for row in table)
        composition = rows(Path("ESDs/joint/mine+yours.composition.csv"))
        assert [(row["family"], row["model"], row["heads"]) for row in composition] == [
            ("mine", "a", "36"), ("mine", "c", "24"), ("yours", "b", "24"),
        ]  # fmt: skip
        for row in composition:
            shares = [float(row[f"class_{number}"]) for number in range(3)]
            assert shares == pytest.approx([1 / 3] * 3)
        (line,) = lines
        assert line.startswith("joint/mine+yours: 3 classes, stability 1.00 ± 0.00, silhouette ")
        assert "lowest 1.00" in line

    def test_the_same_input_gives_the_same_bytes(self) -> None:
        put(*two_models())
        first = {p.name: p.read_bytes() for p in generate_joint_taxonomy(n_clusters="auto")}
        again = {p.name: p.read_bytes() for p in generate_joint_taxonomy(n_clusters="auto")}
        assert first == again
        choice = rows(Path("ESDs/joint/mine+yours.choice.csv"))
        assert [row["clusters"] for row in choice if row["chosen"] == "True"] == ["3"]

    def test_a_table_of_choices_goes_with_its_classes(self) -> None:
        put(*two_models())
        generate_joint_taxonomy(n_clusters="auto")
        generate_joint_taxonomy(n_clusters="auto", name="mine")
        written = generate_joint_taxonomy(n_clusters=3, name="mine")
        caption = Path("ESDs/joint/mine.md")
        assert set(Path("ESDs/joint").glob("mine.*")) == {*written, caption}
        assert Path("ESDs/joint/mine+yours.choice.csv").is_file()

    def test_names(self) -> None:
        layers = planted_layers(1, circuit="ov", convention="folded")
        put(*(model_of(layers, f"me/{family}", family=family) for family in "abcd"))
        how = {"circuit": "ov", "convention": "folded", "n_clusters": 2}
        assert generate_joint_taxonomy(**how)[0].name == "all.ov.folded.png"
        assert generate_joint_taxonomy(["a", "C"], **how)[0].name == "a+c.ov.folded.png"
        assert generate_joint_taxonomy("b", name="my.own", **how)[0].name == "my.own.ov.folded.png"
        with pytest.raises(CatalogError, match=r"'a/b' cannot name a file.*--name"):
            generate_joint_taxonomy(name="a/b")

    def test_models_that_cannot_be_pooled_are_named(self) -> None:
        put(*two_models(), model_of(planted_layers(circuit="ov"), "me/other"))
        Path("data/mine/broken.safetensors").write_text("no spectra")
        with pytest.raises(PartialFailureError) as caught:
            generate_joint_taxonomy(n_clusters=3)
        assert set(caught.value.failures) == {"mine/broken", "mine/other"}
        assert len(rows(Path("ESDs/joint/mine+yours.csv"))) == 60

    def test_imported_spectra_that_are_left_out_are_named(self) -> None:
        put(*two_models(), model_of(planted_layers(), "me/old", family="old", imported=True))
        lines: list[str] = []
        generate_joint_taxonomy(n_clusters=3, report=lines.append)
        assert lines[1].startswith("Left out: 1 of 3 models")
        composition = rows(Path("ESDs/joint/mine+yours.composition.csv"))
        assert [row["model"] for row in composition] == ["a", "b"]
        figure, *_ = generate_joint_taxonomy(n_clusters=3, include_imported=True)
        assert figure.name == "mine+old+yours.png"

    def test_many_models_are_shown_by_family(self) -> None:
        layers = planted_layers(1, 3)
        models = [model_of(layers, f"me/m{i}", family=f"f{i % 12}") for i in range(45)]
        put(*models)
        figure, *_ = generate_joint_taxonomy(n_clusters=3)
        assert figure.name == "all.png"
        assert len(rows(Path("ESDs/joint/all.composition.csv"))) == 45

    def test_assignments(self) -> None:
        stacks = [*planted_layers(1, stack="decoder"), *planted_layers(1, stack="encoder")]
        put(*two_models(), model_of(stacks, "me/c", family="third"))
        generate_joint_taxonomy(["mine", "yours"], n_clusters=4)
        lines: list[str] = []
        file = Path("ESDs/joint/mine+yours.taxonomy.safetensors")
        written = generate_assignments(file, report=lines.append)
        assert [str(path) for path in written] == [
            "ESDs/mine/a.assigned.csv",
            "ESDs/third/c.decoder.assigned.csv",
            "ESDs/third/c.encoder.assigned.csv",
            "ESDs/yours/b.assigned.csv",
        ]
        table = rows(written[0])
        assert list(table[0]) == ["layer", "head", "class", "distance", "beyond"]
        own = [r for r in rows(Path("ESDs/joint/mine+yours.csv")) if r["model"] == "a"]
        assert [row["class"] for row in table] == [row["class"] for row in own]
        assert {row["beyond"] for row in table} == {"False"}
        assert "0 of 36 (0%) farther" in lines[0]
        assert len(lines) == 3
        assert "d_head 64, and at least 128 in the taxonomy)" in lines[1]
        (again,) = generate_assignments(load_taxonomy(file), "yours")
        assert again == written[3]
