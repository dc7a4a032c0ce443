"""Captions of the workflow's report: templates in reStructuredText."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils.core import publish_parts
from jinja2 import Environment, StrictUndefined

CAPTIONS = sorted((Path(__file__).resolve().parents[2] / "workflow" / "report").glob("*.rst"))


def test_every_figure_and_the_table_has_one():
    names = {path.stem for path in CAPTIONS}
    assert {
        "ctr_over_steps",
        "ndcg_over_steps",
        "ablation",
        "frontier",
        "overoptimisation",
        "results",
        "certificates",
    } <= names
    assert {"ranker_card", "ranker_curve"} <= names


@pytest.mark.parametrize("path", CAPTIONS, ids=lambda path: path.stem)
def test_captions_render_without_a_warning(path, capsys):
    params = SimpleNamespace(runs=["a", "b", "c"], settings="--ndcg-margin 0.02")
    template = Environment(undefined=StrictUndefined).from_string(path.read_text())
    wildcards = SimpleNamespace(dataset="books")
    text = template.render(snakemake=SimpleNamespace(params=params, wildcards=wildcards))
    html = publish_parts(text, writer="html")["body"]
    assert "system-message" not in html
    assert "{{" not in html
    assert any(value in text for value in ("3\nruns", "3 runs", "--ndcg-margin 0.02", "books"))
    assert capsys.readouterr().err == ""
