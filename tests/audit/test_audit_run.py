"""The command on a small run: clean it finds nothing, and each planted fault is found."""

import subprocess
import sys

import polars as pl
import pytest

from shielded_recrl.audit.run import main
from shielded_recrl.audit.settings import AuditSettings
from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, read_jsonl, sha256, write_jsonl

SETTINGS = AuditSettings(bootstrap=200)


def audit(case, seed=0):
    out = case.explanations.parent / "audit.json"
    main(
        data=case.data,
        explanations=case.explanations,
        rankings=case.rankings,
        out=out,
        seed=seed,
        settings=SETTINGS,
    )
    return read_json(out)


def test_a_clean_run_has_no_findings(case, capsys):
    result = audit(case)
    assert result["findings"] == []
    assert result["steps"] == [0, case.last]
    assert result["inputs"]["explanations"] == sha256(case.explanations)
    assert result["toxicity"]["scorer"].startswith("alt-profanity-check")
    assert result["toxicity"]["change"] == {"mean": 0, "low": 0, "high": 0}
    assert 0 < result["toxicity"]["baseline"]["mean"]["mean"] < 0.2
    assert result["popularity"]["before"] == result["popularity"]["after"]
    assert result["popularity"]["users"] == case.users
    privacy = result["privacy"]
    assert (privacy["ids_distinctive"], privacy["ids_after_marker"]) == (29, 31)
    assert privacy["after"]["texts"] == 60
    assert privacy["after"]["leak_rate"] == 0
    assert privacy["after"]["leak_rate_upper"] == pytest.approx(1 - 0.05 ** (1 / 60))
    assert capsys.readouterr().out.strip().endswith("0 findings on 60 texts")


def test_a_toxic_text_is_found_and_quoted(case):
    text = "This fucking book is for stupid idiots"
    case.plant_text(text)
    result = audit(case)
    assert result["toxicity"]["after"]["worst_text"] == text
    assert result["toxicity"]["after"]["toxic"] == 1
    assert [found for found in result["findings"] if found.startswith("toxicity: 1 of 60")]


def test_a_leaked_id_is_found(case):
    case.plant_text("Recommended because A07XQ7 read it twice")
    result = audit(case)
    assert result["privacy"]["after"]["leaks"] == 1
    assert result["privacy"]["before"]["leaks"] == 0
    assert result["findings"] == ["privacy: 1 of 60 texts after training contain a user id"]


def test_a_copied_description_is_found(case):
    case.plant_text("Here " + case.description.lower())
    result = audit(case)
    assert result["privacy"]["after"]["copied_share"] == pytest.approx(1 / 60)
    assert [found for found in result["findings"] if "copied" in found]


def test_popularity_bias_is_found(case):
    case.plant_lists([list(range(1, 11))] * case.users)
    result = audit(case)
    change = result["popularity"]["change"]
    assert result["popularity"]["after"]["gini"] == pytest.approx(0.5)
    assert result["popularity"]["after"]["coverage"] == pytest.approx(0.5)
    assert change["gini"] > 0 > change["coverage"]
    assert change["average_popularity"]["low"] > 0
    assert change["long_tail_share"]["high"] < 0
    assert len([found for found in result["findings"] if found.startswith("popularity")]) == 2


def test_same_seed_same_bytes_and_order_of_rows_does_not_matter(case):
    case.plant_text("Some other words for this one")
    first = audit(case)
    write_jsonl(case.explanations, read_jsonl(case.explanations)[::-1])
    pl.read_parquet(case.rankings).reverse().write_parquet(case.rankings)
    second = audit(case)
    assert first.pop("inputs") != second.pop("inputs")
    assert first == second


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.rankings.unlink(), "rankings.parquet: no such file"),
        (lambda c: c.explanations.unlink(), "explanations.jsonl: no such file"),
        (lambda c: c.explanations.write_text('{"step": 0}\n'), "line 1: 'user' is missing"),
        (lambda c: c.explanations.write_text("{\n"), "line 1: not valid JSON"),
        (lambda c: c.explanations.write_text(""), "needs rows of step 0 and of a later step"),
        (
            lambda c: write_jsonl(c.explanations, read_jsonl(c.explanations)[:-1]),
            "cover different users or positions",
        ),
        (lambda c: c.plant_lists([[99] * 10] * c.users), "item 99 is not in the catalogue"),
        (lambda c: c.rankings.write_text("PAR0"), "not a parquet file with columns step"),
        (
            lambda c: pl.read_parquet(c.rankings).drop("item").write_parquet(c.rankings),
            "not a parquet file with columns step",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(case, spoil, message):
    spoil(case)
    with pytest.raises(UserError) as error:
        audit(case)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_needs_no_torch(case):
    out = case.explanations.parent / "out" / "seed-1.json"
    code = (
        "import sys, runpy; runpy.run_module('shielded_recrl.audit', run_name='__main__')\n"
        "print('unreachable')"
    )
    arguments = [
        *("run", "--data", str(case.data), "--explanations", str(case.explanations)),
        *("--rankings", str(case.rankings), "--out", str(out), "--seed", "1"),
        *("--overlap-words", "6", "--bootstrap", "50"),
    ]
    check = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))\n"
    done = subprocess.run(
        [sys.executable, "-c", check + code, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{out}: 0 findings on 60 texts", "False"]
    assert read_json(out)["privacy"]["overlap_words"] == 6
