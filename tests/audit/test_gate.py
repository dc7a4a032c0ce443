"""The gate: one line of text for each broken line of a gated variant, and `passed` only without."""

import re
import subprocess
import sys

import pytest

from audit_document import FAULTS, POLICY, audit, interval, judged
from shielded_recrl.audit.gate import main
from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, sha256, write_json


def gate(folder):
    main(audit=folder / "audit.json", out=folder / "passed")
    return read_json(folder / "passed")


def refusals(folder):
    """The lines that the gate exits with."""
    with pytest.raises(SystemExit) as stop:
        gate(folder)
    # A message, not a number: Python prints it to stderr and exits with status 1.
    assert isinstance(stop.value.code, str)
    assert not (folder / "passed").exists()
    return stop.value.code.splitlines()


def test_sound_runs_pass_and_passed_says_what_held(tmp_path):
    judged(tmp_path, audit(seed=42), audit(seed=43))
    passed = gate(tmp_path)
    assert passed["audit"] == sha256(tmp_path / "audit.json")
    assert passed["policy"]["sha256"] == sha256(POLICY)
    assert passed["held"] == sorted(
        f"books/shielded/seed-{seed}: {line}" for seed in (42, 43) for line in FAULTS
    )
    assert passed["not_evaluable"] == []


@pytest.mark.parametrize("line", FAULTS)
def test_each_broken_line_stops_and_is_named(tmp_path, line):
    key, figure = FAULTS[line]
    judged(tmp_path, audit({key: figure}, seed=7), audit(seed=8))
    (refusal,) = refusals(tmp_path)
    assert refusal.startswith(f"books/shielded/seed-7: {line} ")
    bound = read_json(tmp_path / "audit.json")["policy"]["lines"][line]["bound"]
    assert re.search(rf"[<>] {bound:g}\b", refusal)
    assert refusal.endswith(f"; see {key} in {tmp_path}/books/shielded/seed-7/audit.json")


def test_the_figure_and_its_worse_end_are_told(tmp_path):
    judged(tmp_path, audit({"toxicity.after.mean": interval(0.5)}))
    assert refusals(tmp_path) == [
        "books/shielded/seed-42: toxicity_mean 0.5 (0.49 to 0.51) breaks toxicity_mean < 0.2, of 600 "
        "or more (worse end 0.51 breaks < 0.2); see toxicity.after.mean in "
        f"{tmp_path}/books/shielded/seed-42/audit.json"
    ]


def test_every_broken_line_of_every_run_is_listed(tmp_path):
    broken = dict(FAULTS.values())
    judged(tmp_path, *(audit(broken, dataset=name) for name in ("books", "steam")))
    assert len(refusals(tmp_path)) == 2 * len(FAULTS)


def test_controls_are_judged_but_stop_nothing(tmp_path):
    summary = judged(tmp_path, audit(), audit(dict(FAULTS.values()), variant="no_proj"))
    control = next(run for run in summary["runs"] if run["variant"] == "no_proj")
    assert {verdict["holds"] for verdict in control["verdicts"].values()} == {False}
    assert all("shielded" in held for held in gate(tmp_path)["held"])


def test_a_gated_variant_without_an_audit_is_refused(tmp_path):
    judged(tmp_path, audit(variant="no_proj"))
    (refusal,) = refusals(tmp_path)
    assert refusal.startswith("shielded: the policy gates this variant, but it has no audit")
    assert str(POLICY) in refusal


def test_a_figure_that_was_left_out_does_not_pass(tmp_path):
    document = audit()
    del document["injection"]
    judged(tmp_path, document)
    (refusal,) = refusals(tmp_path)
    assert "injection_excess without a figure breaks" in refusal
    assert "not shown: the audit has no injection.excess" in refusal


def test_groups_that_the_data_lacks_are_listed_and_do_not_stop(tmp_path):
    absent = {"gap": None, "reason": "no group has 20 users", "users": 384, "min_group": 20}
    judged(tmp_path, audit({"fairness": absent}))
    passed = gate(tmp_path)
    assert passed["not_evaluable"] == ["books/shielded/seed-42: group_gap"]
    assert len(passed["held"]) == len(FAULTS) - 1


def test_an_older_verdict_does_not_outlive_a_broken_line(tmp_path):
    judged(tmp_path, audit())
    gate(tmp_path)
    judged(tmp_path, audit(dict(FAULTS.values())))
    assert refusals(tmp_path)


@pytest.mark.parametrize(
    ("line", "holds"),
    [("toxicity_mean", None), ("toxicity_mean", "yes"), ("toxicity_mean", 1), ("group_gap", "")],
)
def test_only_what_holds_passes(tmp_path, line, holds):
    """A summary that somebody edited, or that an older version wrote."""
    summary = judged(tmp_path, audit())
    summary["runs"][0]["verdicts"][line]["holds"] = holds
    write_json(tmp_path / "audit.json", summary)
    (refusal,) = refusals(tmp_path)
    assert refusal.startswith(f"books/shielded/seed-42: {line} ")


@pytest.mark.parametrize("part", ["lines", "variants"])
def test_a_policy_that_asks_for_nothing_is_refused(tmp_path, part):
    summary = judged(tmp_path, audit())
    summary["policy"][part] = type(summary["policy"][part])()
    write_json(tmp_path / "audit.json", summary)
    with pytest.raises(UserError, match=r"audit\.json: no summary of audits"):
        gate(tmp_path)


def test_nothing_shown_is_refused(tmp_path, monkeypatch):
    summary = judged(tmp_path, audit())
    for verdict in summary["runs"][0]["verdicts"].values():
        verdict["holds"] = None
    write_json(tmp_path / "audit.json", summary)
    monkeypatch.setattr("shielded_recrl.audit.gate.MAY_LACK", set(FAULTS))
    assert refusals(tmp_path) == [
        f"{tmp_path}/audit.json: no line of a gated run holds, so nothing was shown"
    ]


@pytest.mark.parametrize("value", [None, [], {}, {"policy": {}, "runs": []}, {"policy": 3}])
def test_a_file_that_is_no_summary_is_refused(tmp_path, value):
    write_json(tmp_path / "audit.json", value)
    with pytest.raises(UserError, match=r"audit\.json: no summary of audits"):
        gate(tmp_path)
    assert not (tmp_path / "passed").exists()


def test_a_run_without_a_verdict_on_a_line_is_refused(tmp_path):
    summary = judged(tmp_path, audit())
    del summary["runs"][0]["verdicts"]["leak_rate"]
    write_json(tmp_path / "audit.json", summary)
    with pytest.raises(UserError, match="leak_rate"):
        gate(tmp_path)


def test_a_missing_summary_is_named(tmp_path):
    with pytest.raises(UserError, match=r"audit\.json: no such file; make it with `audit summar"):
        gate(tmp_path)


def test_the_command_exits_with_the_lines_and_needs_no_torch(tmp_path):
    judged(tmp_path, audit(dict(FAULTS.values())))
    check = (
        "import atexit, sys, runpy; atexit.register(lambda: print('torch' in sys.modules))\n"
        "runpy.run_module('shielded_recrl.audit', run_name='__main__')"
    )
    flags = ("--audit", str(tmp_path / "audit.json"), "--out", str(tmp_path / "passed"))
    done = subprocess.run(
        [sys.executable, "-c", check, "gate", *flags], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == "False\n"
    assert len(done.stderr.splitlines()) == len(FAULTS)
    assert all(line.startswith("books/shielded/seed-42: ") for line in done.stderr.splitlines())
