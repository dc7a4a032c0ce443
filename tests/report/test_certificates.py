"""The page of certificates, and drift after a merge."""

import pytest

from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, write_json
from shielded_recrl.report import certificates
from shielded_recrl.report.columns import row
from shielded_recrl.report.runs import load_runs
from shielded_recrl.report.settings import ReportSettings

SETTINGS = ReportSettings()


def load(study, place=0):
    return load_runs(study.runs[place : place + 1], study.audits, study.stats)[0]


def edit(study, change):
    """Change the first run's certificate in place."""
    path = study.runs[0] / "certificate.json"
    document = read_json(path)
    change(document)
    write_json(path, document)
    return path


def tables(page):
    """Cells of the rows of both tables."""
    return [
        [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")][2:]
        for part in page.split("## After a merge")
    ]


def test_a_row_a_run_and_a_row_a_merge(study):
    runs = load_runs(study.runs, study.audits, study.stats)
    page = certificates.page(runs)
    promised, merged = tables(page)
    assert [cells[:3] for cells in promised] == [
        [run.dataset, f"`{run.variant}`", str(run.seed)] for run in runs
    ]
    assert promised[0][3:] == [
        "approximate",
        "approximate",
        "Promised: nothing &#124; measured: 80.0% changed, merged None.",
    ]
    assert len(merged) == 3 * len(runs)
    assert [cells[3] for cells in merged[:3]] == ["fp32", "bf16", "nf4"]
    # 102 of 128 users changed in fp32, 105 in bf16.
    assert [cells[7:9] for cells in merged[:2]] == [["20.3%", "2.4"], ["18.0%", "2.46"]]
    assert "not measured: bitsandbytes is not installed" in merged[2][-1]
    assert page.count("Everything else is approximate.") == 1


def test_a_table_holds_drift_after_a_merge_or_says_why_not(study):
    values = row(load(study), SETTINGS)
    assert values["merged_bf16_top10_identical"] == 1 - 105 / 128
    assert values["merged_bf16_max_score_change"] == pytest.approx(2.46)
    assert values["merged_nf4_top10_identical"] is None
    assert values["notes"].split("; ")[0] == (
        "merged_nf4_top10_identical, merged_nf4_max_score_change: not measured: bitsandbytes is "
        "not installed"
    )


@pytest.mark.parametrize("variant", ["separate", "activated"])
def test_what_cannot_be_merged_says_so(extended, variant):
    run = load(extended(("steam", variant, 42)))
    values = row(run, SETTINGS)
    names = [f"merged_{p}_{key}" for p in certificates.PRECISIONS for key in ("top10_identical", "max_score_change")]  # fmt: skip
    assert [values[name] for name in names] == [None] * 6
    reason = f"not mergeable: the shield {variant} keeps the adapter out of the ranking"
    assert values["notes"].split("; ")[0] == f"{', '.join(names)}: {reason}"
    assert values["certificate_protected"] == values["certificate_heldout"] == "exact"
    promised, merged = tables(certificates.page([run]))
    assert promised[0][3:5] == ["exact", "exact"]
    assert len(merged) == 1
    assert merged[0][3] == "nothing"
    assert merged[0][-1] == reason


def test_precisions_left_out_are_named(study):
    edit(study, lambda c: c["merges"].pop("nf4"))
    assert "not measured: nf4 is not in evaluation.merge" in row(load(study), SETTINGS)["notes"]
    edit(study, lambda c: c.update(merges={}))
    _, merged = tables(certificates.page([load(study)]))
    assert merged[0][-1] == "not measured: evaluation.merge is empty"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.pop("verdict"), "'verdict' needs exact or approximate"),
        (lambda c: c["verdict"].update(heldout="perfect"), "'verdict' needs exact or approximate"),
        (lambda c: c.pop("sentence"), "lacks the text 'sentence'"),
        (lambda c: c.update(rule=None), "lacks the text 'rule'"),
        (lambda c: c.pop("merges"), "'merges' is None, no object of precisions"),
        (lambda c: c["merges"].update(bf16={}), "'merges.bf16' has neither a verdict nor"),
        (lambda c: c["merges"]["bf16"].pop("heldout"), "'merges.bf16.heldout' needs the numbers"),
        (
            lambda c: c["merges"]["bf16"]["protected"].update(top10_identical="all"),
            "'merges.bf16.protected' needs the numbers",
        ),
    ],
)
def test_a_bad_certificate_is_named(study, spoil, message):
    path = edit(study, spoil)
    run = load(study)
    with pytest.raises(UserError) as error:
        certificates.page([run])
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
