"""Captions of the workflow's report: templates in reStructuredText."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils.core import publish_parts
from jinja2 import Environment, StrictUndefined

CAPTIONS = sorted((Path(__file__).resolve().parents[2] / "workflow" / "report").glob("*.rst"))


def test_every_figure_and_every_shown_file_has_one():
    names = {path.stem for path in CAPTIONS}
    assert {
        *("ctr_over_steps", "ndcg_over_steps", "ablation", "frontier", "overoptimisation"),
        *("quality_weight", "calibration", "texts", "audits"),
        *("results", "significance", "criteria", "page", "audit_pdf", "ranker_curve", "workflow"),
    } == names


@pytest.mark.parametrize("path", CAPTIONS, ids=lambda path: path.stem)
def test_captions_render_without_a_warning(path, capsys):
    source = path.read_text(encoding="utf-8")
    params = SimpleNamespace(runs=["a", "b", "c"], settings="--ndcg-margin 0.02", seed=4217)
    template = Environment(undefined=StrictUndefined).from_string(source)
    wildcards = SimpleNamespace(dataset="books")
    text = template.render(snakemake=SimpleNamespace(params=params, wildcards=wildcards))
    html = publish_parts(text, writer="html")["body"]
    assert "system-message" not in html
    assert "{{" not in html
    # What a caption takes from its rule is in its text.
    for name, shown in (
        ("params.runs", "3"),
        ("params.settings", "--ndcg-margin 0.02"),
        ("params.seed", "4217"),
        ("wildcards.dataset", "books"),
    ):
        assert f"snakemake.{name}" not in source or re.search(rf"(?<!\w){shown}(?!\w)", text)
    assert capsys.readouterr().err == ""
