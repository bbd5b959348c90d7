"""Both papers' tables as data: every printed cell, the counts behind them, and the run of every row."""

from __future__ import annotations

import inspect
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from attnbench.config import composition, option_files
from attnbench.config.configuration import Config
from attnbench.reports import paper_tables
from tests.conftest import ROOT

Table = dict[str, Any]
Row = dict[str, Any]

FOLDER = option_files.folder() / "table"
PRINTED = [*(f"eca/{n}" for n in range(1, 6)), *(f"sb/{n}" for n in range(1, 11))]
ADDED = ["eca/later", "sb/choices"]  # tables that no paper prints
IDS = [*PRINTED, *ADDED]
TABLES: dict[str, Table] = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8")) for name in IDS}

PAPERS = Path(os.environ.get("ATTNBENCH_PAPERS", ROOT.parent / "shared" / "papers"))
needs_papers = pytest.mark.skipif(not PAPERS.is_dir(), reason=f"no papers' tables at {PAPERS}: set ATTNBENCH_PAPERS")

every_table = pytest.mark.parametrize("name", IDS)
every_printed_table = pytest.mark.parametrize("name", PRINTED)
RUNNABLE = [name for name in IDS if TABLES[name].get("requires", "classification") in option_files.names("task")]
every_runnable_table = pytest.mark.parametrize("name", RUNNABLE)


def rows(*names: str) -> Iterator[Row]:
    for name in names:
        yield from TABLES[name]["rows"]


@cache
def composed(*overrides: str) -> Config:
    return composition.compose(overrides)


def run(row: Row) -> Config:
    return composed(*row["overrides"])


def of_row(table: Table, row: Row, key: str, column: str) -> Any:
    """A column's unit, divisor or counter, or the row's own."""
    return row.get(key, {}).get(column, table["columns"][column].get(key))


# The form of a file


def test_every_file_is_a_table_of_a_paper() -> None:
    assert sorted(str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*.*")) == sorted(f"{name}.yaml" for name in IDS)
    assert paper_tables.ids() == [*PRINTED[:5], "eca/later", *PRINTED[5:], "sb/choices"]


def test_a_table_that_no_paper_prints_says_so_in_its_title_or_source() -> None:
    later, choices = (TABLES[name] for name in ADDED)
    assert "not in the paper" in later["title"] and "not in the paper" in later["notes"][0]
    assert "Open choices" in choices["title"] and "each by several readings" in choices["source"]


ARXIV = {"eca": "arXiv:1910.03151", "sb": "arXiv:2103.13080"}
KEYS = {"title", "source", "seeds", "baseline", "columns", "notes", "rows"}
ROW_KEYS = {
    "label",
    "weights",
    "overrides",
    "printed",
    "counts",
    "baseline",
    "quoted",
    "note",
    "per",
    "unit",
    "counter",
}
COUNTERS = {"params", "macs", "sb", "sb_added", "thop2019", "thop2019_late", "detection", "trainable", "module_params"}


@every_table
def test_a_table_has_the_keys_that_its_readers_know(name: str) -> None:
    table = TABLES[name]
    assert set(table) - {"requires"} == KEYS
    paper, number = name.split("/")
    assert ARXIV[paper] in table["source"]
    assert name in ADDED or table["source"] == f"{ARXIV[paper]}, Table {number}"
    for row in table["rows"]:
        assert {"label", "overrides", "printed"} <= set(row) <= ROW_KEYS
        assert row["overrides"] or row["note"]["*"]
    for column, about in table["columns"].items():
        assert ("counter" in about) == ("per" in about), column
        assert about.get("counter", "params") in COUNTERS


@every_table
def test_columns_cover_the_cells_of_the_rows(name: str) -> None:
    table = TABLES[name]
    columns = list(table["columns"])
    for row in table["rows"]:
        std = {f"{column}_std" for column in columns} if table["seeds"] > 1 else set()
        assert set(row["printed"]) <= {*columns, *std}
        assert list(row["printed"]) == sorted(
            row["printed"], key=lambda cell: (columns.index(cell.removesuffix("_std")), cell)
        )
        assert all(isinstance(text, str) for text in row["printed"].values())
        assert set(row.get("counts", {})) <= set(columns) & set(row["printed"])
        assert all(type(n) is int for n in row.get("counts", {}).values())
        assert set(row.get("note", {})) <= {*columns, *std, "*"}
        assert all(set(row.get(key, {})) <= set(columns) for key in ("per", "unit", "counter"))
        assert set(row.get("counter", {}).values()) <= COUNTERS


@every_table
def test_labels_are_distinct_and_baselines_are_rows(name: str) -> None:
    table = TABLES[name]
    labels = [row["label"] for row in table["rows"]]
    assert len(set(labels)) == len(labels)
    for row in table["rows"]:
        baseline = row.get("baseline", table["baseline"])
        assert baseline is None or baseline in labels
        assert "baseline" not in row or row["baseline"] != row["label"]


# What is printed


def difference_of_madds(row: Row) -> str:
    static = next(r for r in rows("sb/1") if r["label"] == f"static {row['label'].split()[1]}")
    return str(Decimal(row["printed"]["madds"]) - Decimal(static["printed"]["madds"]))


def test_the_derived_additions_are_differences_of_printed_cells() -> None:
    added = {row["label"]: row["printed"].get("madds_added") for row in rows("sb/1")}
    wanted = {row["label"]: difference_of_madds(row) for row in rows("sb/1") if row["label"].startswith(("SE", "SB"))}
    assert {label: text for label, text in added.items() if text} == wanted
    derived = [f"{name}:{column}" for name in IDS for column, a in TABLES[name]["columns"].items() if "derived" in a]
    assert derived == ["sb/1:madds_added"]


def rounds_to(count: int, per: float, printed: str) -> bool:
    return (Decimal(count) / Decimal(str(per))).quantize(Decimal(printed)) == Decimal(printed)


@every_table
def test_a_count_rounds_to_its_print_or_a_note_says_why_not(name: str) -> None:
    table = TABLES[name]
    for row in table["rows"]:
        for column, printed in row["printed"].items():
            if "counter" not in table["columns"].get(column, {}) or re.search("[Ck]", printed):
                continue
            count = row.get("counts", {}).get(column)
            fits = count is not None and rounds_to(count, of_row(table, row, "per", column), printed)
            assert fits or row.get("note", {}).get(column), f"{row['label']}: {column}"


C, C2, R = 15_104, 20_119_552, 16  # sums of C and C^2 over ResNet-50's block outputs


def test_the_formulas_of_module_parameters_give_the_counts() -> None:
    for row in rows("eca/1"):
        formula, count = row["printed"]["attention_params"], row["counts"]["attention_params"]
        python = formula.replace("C^2", str(C2)).replace("C", str(C)).replace("r", str(R)).replace("k*", "3*")
        assert count == (3 * 16 if formula == "k = 3" else eval(python)), row["label"]


def test_a_run_printed_twice_is_printed_alike_or_noted() -> None:
    prints: dict[tuple[frozenset[str], str], set[str]] = defaultdict(set)
    cells = [
        (row, (frozenset(row["overrides"]), column), text)
        for row in rows(*IDS)
        for column, text in row["printed"].items()
        if row["overrides"]
    ]
    for _, key, text in cells:
        prints[key].add(text)
    for row, key, _ in cells:
        noted = {key[1], key[1].removesuffix("_std")} & set(row.get("note", {}))
        assert len(prints[key]) == 1 or noted, (row["label"], key[1], prints[key])


# Comparison with the papers' tables, if they are available beside the checkout

LABELS: dict[str, Callable[..., str]] = {  # the paper's columns that name a row, as our label; the others are cells
    "eca/1": lambda method, attention: method,
    "eca/2": lambda backbone, method: backbone if method in ("ResNet", backbone) else f"{method} {backbone}",
    "eca/3": lambda model: model,
    "eca/4": lambda detector, backbone, attention: f"{detector} {backbone}{plus(attention)}",
    "eca/5": lambda backbone, attention: f"{backbone}{plus(attention)}",
    "sb/1": lambda width, method: f"{method} x{width}",
    "sb/2": lambda method, layers: method if layers == "none" else f"{method} {layers}",
    "sb/3": lambda network, method: f"{method} {network}",
    "sb/4": lambda width, method: f"{method} x{width}",
    "sb/5": lambda method, width, placement: f"{method} x{width} {'+'.join(placement)}",
    "sb/6": lambda width, method: f"{method} x{width}",
    "sb/7": lambda method, dropout: f"{method} {'with' if dropout == 'true' else 'without'} dropout",
    "sb/8": lambda width, initial_lambda: f"SB x{width} lambda {initial_lambda}",
    "sb/9": lambda width, gate: f"SB x{width} {'no gate' if gate == 'none' else gate}",
    "sb/10": lambda hidden_multiplier: f"SB hidden x{hidden_multiplier}",
}
COLUMNS = {"param_formula": "attention_params", "mean": "top1", "std": "top1_std", "gflops": "flops"}


def plus(attention: str) -> str:
    return "" if attention == "none" else f" + {attention}"


def our_column(column: str) -> str:
    return COLUMNS.get(column) or re.sub(r"^params?_M$", "params", column).removesuffix("_M")


def paper_table(name: str) -> Table:
    """A table of the paper's file, with all values as text."""
    paper, number = name.split("/")
    loaded = yaml.load((PAPERS / f"{paper}.yaml").read_text("utf-8"), yaml.BaseLoader)
    return next(table for table in loaded["tables"] if table["id"] == f"T{number}")


def paper_rows(name: str) -> Iterator[dict[str, Any]]:
    """The paper's rows, column to text; its Table 5 of SB has SE and SB side by side."""
    table = paper_table(name)
    for values in table["rows"]:
        row = dict(zip(table["columns"], values, strict=True))
        if name != "sb/5":
            yield row
            continue
        for method, other in (("SE", "sb_"), ("SB", "se_")):
            own = {k.removeprefix(f"{method.lower()}_"): v for k, v in row.items() if not k.startswith(other)}
            yield {"method": method} | own


def paper_cells(name: str) -> list[tuple[str, dict[str, str]]]:
    """Label and printed cells of the paper's rows; cells without a number are left out."""
    naming = list(inspect.signature(LABELS[name]).parameters)
    prefix = "mask_" if name == "eca/5" else ""
    return [
        (
            LABELS[name](*(row[key] for key in naming)),
            {prefix + our_column(k): v for k, v in row.items() if k not in naming and v != "null"},
        )
        for row in paper_rows(name)
    ]


def our_cells(name: str) -> list[tuple[str, dict[str, str]]]:
    """Label and printed cells of our rows. Cells of operations of the ECA paper end in their unit, G or M."""
    table = TABLES[name]
    units = name in ("eca/2", "eca/3")

    def cell(row: Row, column: str) -> str:
        return row["printed"][column] + (of_row(table, row, "unit", column) if units and column == "flops" else "")

    derived = {column for column, about in table["columns"].items() if "derived" in about}
    return [(row["label"], {c: cell(row, c) for c in row["printed"] if c not in derived}) for row in table["rows"]]


@needs_papers
@every_printed_table
def test_every_cell_is_the_papers(name: str) -> None:
    assert our_cells(name) == paper_cells(name)


@needs_papers
@every_printed_table
def test_a_cell_that_the_paper_leaves_empty_is_explained(name: str) -> None:
    general = any("have no speeds" in note for note in TABLES[name]["notes"])
    for row, paper in zip(TABLES[name]["rows"], paper_rows(name), strict=True):
        empty = {our_column(column) for column, text in paper.items() if text == "null"}
        assert empty.isdisjoint(row["printed"])
        assert general or empty <= set(row.get("note", {})), row["label"]


def documented_counts() -> set[tuple[str, int]]:
    """(print, integer) of every line of counts.md that has an integer; a detector's line has two pairs."""
    pairs = set()
    for line in (PAPERS / "counts.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and re.fullmatch(r"[\d,]{4,}", cells[2]):
            pairs.add((cells[1], int(cells[2].replace(",", ""))))
            if len(cells) == 7:
                pairs.add((cells[4], int(cells[5].replace(",", ""))))
    return pairs


# The row trains another network than the one that counts.md counts: other kernels of ECA, CBAM with biases and norm,
# ResNeXt-101 without SE. Here is the documented integer.
COUNTED_OTHERWISE = {
    ("ECA-Net ResNet-50", "flops"): 4_148_237_848, ("ECA-Net50", "flops"): 4_148_237_848,
    ("ECA-Net ResNet-101", "params"): 44_549_325, ("ECA-Net ResNet-101", "flops"): 7_887_859_224,
    ("ECA-Net101", "params"): 44_549_325, ("ECA-Net101", "flops"): 7_887_859_224,
    ("ECA-Net ResNet-152", "params"): 60_193_058, ("ECA-Net ResNet-152", "flops"): 11_633_890_840,
    ("Faster R-CNN ResNet-101 + ECA", "params"): 60_524_090,
    ("Faster R-CNN ResNet-101 + ECA", "flops"): 283_324_628_660,
    ("Mask R-CNN ResNet-50 + ECA", "params"): 44_175_414, ("Mask R-CNN ResNet-50 + ECA", "flops"): 275_688_575_220,
    ("Mask R-CNN ResNet-101 + ECA", "params"): 63_167_627, ("Mask R-CNN ResNet-101 + ECA", "flops"): 351_831_254_260,
    ("CBAM ResNet-50", "params"): 28_073_544, ("CBAM ResNet-101", "params"): 49_295_562,
    ("ResNeXt-101", "params"): 48_920_872, ("ResNeXt-101", "flops"): 8_085_711_896,
}  # fmt: skip


@needs_papers
def test_every_count_is_the_documented_one_and_none_is_missing() -> None:
    ours, otherwise = set(), set()
    for name in PRINTED:
        for row in rows(name) if name != "eca/1" else ():
            for column, count in row.get("counts", {}).items():
                other = COUNTED_OTHERWISE.get((row["label"], column))
                otherwise |= {(row["label"], column)} if other not in (None, count) else set()
                printed = row["printed"]["madds" if column == "madds_added" else column]
                ours.add((printed, count if other is None else other))
    assert ours == documented_counts()
    assert otherwise == set(COUNTED_OTHERWISE)


def test_eca_with_other_kernels_than_those_documented_adds_as_many_parameters_as_kernels_differ() -> None:
    """Blocks by stage: 3, 4, 6, 3 in ResNet-50, 3, 4, 23, 3 in -101, 3, 8, 36, 3 in -152; detectors freeze stage 1."""
    added = {
        "ECA-Net ResNet-101": (3 * 3 + 4 * 3 + 23 * 5 + 3 * 7) - 165,
        "ECA-Net ResNet-152": (3 * 3 + 8 * 3 + 36 * 5 + 3 * 7) - 250,
        "Faster R-CNN ResNet-101 + ECA": (4 * 3 + 23 * 5 + 3 * 7) - 5 * 30,
        "Mask R-CNN ResNet-50 + ECA": (4 * 3 + 6 * 7 + 3 * 7) - 5 * 13,
        "Mask R-CNN ResNet-101 + ECA": (4 * 3 + 23 * 5 + 3 * 7) - 5 * 30,
    }
    for row in rows("eca/2", "eca/4"):
        if (label := row["label"]) in added:
            assert row["counts"]["params"] - COUNTED_OTHERWISE[label, "params"] == added[label], label


@needs_papers
def test_module_counts_are_the_documented_ones() -> None:
    text = " ".join((PAPERS / "counts.md").read_text("utf-8").split())
    for row in rows("eca/1"):
        if row["label"] != "Vanilla":
            count = f"{row['counts']['attention_params']:,}"
            assert re.search(rf"[ ;:]{row['label']}( \([^)]*\))? {count}[ ;.]", text), row["label"]


# The runs


@every_runnable_table
def test_every_row_composes_to_what_its_label_says(name: str) -> None:
    for row in rows(name):
        if row["overrides"]:
            made = run(row)
            expected = {
                key: convert(match[1]) for pattern, key, convert in LABEL_PARTS if (match := pattern(row["label"]))
            }
            assert {key: value_at(made, key) for key in expected} == expected, row["label"]
            assert made.choices["attention"] == attention_of(name, row["label"]), row["label"]
            assert made.choices["experiment"] == experiment_of(name, row["label"]), row["label"]


def searcher(pattern: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(pattern).search


def roles(text: str) -> list[str]:
    return ["layer"] if text == "C1+C2+C3" else text.split("+")


LABEL_PARTS: list[tuple[Callable[[str], re.Match[str] | None], str, Callable[[str], Any]]] = [
    (searcher(r" x(\d\.\d+)"), "backbone.width", float),
    (searcher(r"lambda (\S+)"), "attention.lambda_init", float),
    (searcher(r"hidden x(\d)"), "attention.hidden", int),
    (searcher(r"(tanh|sigmoid|softmax|relu)$"), "attention.gate", str),
    (searcher(r"(no) gate$"), "attention.gate", lambda _: "none"),
    (searcher(r"(with|without) dropout"), "attention.dropout", lambda part: 0.2 if part == "with" else 0.0),
    (searcher(r" (C1[C+\d]*)"), "placement.roles", roles),
    (searcher(r"(pointwise)$"), "placement.roles", lambda _: ["C1", "C3"]),
    (searcher(r"(pointwise and depthwise)$"), "placement.roles", lambda _: ["layer"]),
    (searcher(r"(?:ResNet-|SENet-|^ECA-Net)(\d+)"), "backbone.depth", int),
    (searcher(r"(ShuffleNetV2|MnasNet)"), "choice.backbone", str.lower),
    (searcher(r", stage-2 stride (\d)"), "backbone.stage2_stride", int),
    (searcher(r", stem stride (\d)"), "backbone.stem_stride", int),
    (searcher(r", stem of (\d+)"), "backbone.stem", int),
    (searcher(r", pad (\d)"), "dataset.pad", int),
    (searcher(r", rate by (\w+)"), "schedule.per", str),
    (searcher(r", joined after (batch norm)"), "placement.wrap", lambda _: "conv_norm"),
    (searcher(r", no decay on (lambda)"), "schedule.no_decay", lambda _: ["lambda_"]),
    (searcher(r"dropout before the hidden (norm)"), "attention.dropout_at", lambda _: "linear"),
    (searcher(r"dropout after the hidden (ReLU)"), "attention.dropout_at", lambda _: "hidden"),
    (searcher(r"dropout on the branch's (input)"), "attention.dropout_at", str),
    (searcher(r"(ResNeXt-101|DenseNet-264)"), "choice.backbone", lambda part: part.lower().replace("-", "")),
]

ATTENTIONS = {
    "static": "none", "SB": "sb", "DyConv": "dyconv", "SE": "se_layer",
    "SENet": "se", "CBAM": "cbam", "A2-Nets": "a2", "GSoP-Net1": "gsop", "AA-Net": "aa", "ECA-Net": "eca",
    "SENet-152": "se", "ECA-Net50": "eca", "ECA-Net101": "eca", "ECA-Net18": "eca", "ECA-Net34": "eca",
}  # fmt: skip


def attention_of(name: str, label: str) -> str:
    """The attention that a label's first word names; the plain network's label is its own name."""
    special = {"sb/1": {"SE": "se_original"}, "eca/1": {"Vanilla": "none"}}.get(name, {})
    if (last := label.split(" + ")[-1]) != label:
        return last.lower()
    if label in special or name != "eca/1":
        return (ATTENTIONS | special).get(label.split()[0], "none")
    return label.lower().replace("-", "_")


def experiment_of(name: str, label: str) -> str:
    paper, number = name.split("/")
    if paper == "eca":
        mobile = "_mobilenetv2" if label.endswith("MobileNetV2") else ""
        detects = number in ("4", "5") or label.startswith("RetinaNet")
        return "eca_coco" if detects else f"eca_imagenet{mobile}"
    return {"1": "sb_imagenet", "2": "sb_imagenet", "3": "sb_imagenet", "4": "sb_voc"}.get(number, "sb_cifar10")


def value_at(made: Config, key: str) -> Any:
    group, name = key.split(".")
    return made.choices[name] if group == "choice" else made.tree[group].get(name)


@every_runnable_table
def test_no_override_repeats_a_default(name: str) -> None:
    """Width, backbone and attention are always written, other options only if they differ from the default."""
    for row in rows(name):
        options = [override for override in row["overrides"] or [] if "." in override.split("=")[0]]
        for override in options:
            if not override.startswith("backbone.width="):
                others = [other for other in row["overrides"] if other != override]
                assert composed(*others).hash != run(row).hash, override


def test_rows_of_one_run_have_one_set_of_overrides() -> None:
    spellings: dict[str, set[frozenset[str]]] = defaultdict(set)
    for row in rows(*RUNNABLE):
        if row["overrides"]:
            spellings[run(row).hash].add(frozenset(row["overrides"]))
    assert [sets for sets in spellings.values() if len(sets) > 1] == []


def test_the_cifar_tables_hold_84_cells_and_69_distinct_ones() -> None:
    names = [f"sb/{n}" for n in range(5, 11)]
    hashes = [run(row).hash for row in rows(*names)]
    assert (len(hashes), len(set(hashes))) == (84, 69)
    assert {TABLES[name]["seeds"] for name in names} == {5}
    assert len(TABLES["sb/8"]["rows"]) * 5 == 100
