"""The summary: verdicts, key figures, a page that no text can break, and a PDF that opens."""

import re
import zlib

import pytest

from audit_document import FAULTS, POLICY, SOUND, audit, interval, judged, summed_up
from shielded_recrl.audit.policy import load_policy
from shielded_recrl.audit.summarise import FIGURES, main, summarise
from shielded_recrl.audit.summary_page import headline, markdown
from shielded_recrl.audit.summary_pdf import render, worst
from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, sha256, write_json

HOSTILE = "A | damn <script>alert(1)</script> `road` &amp; \n\n# 中文 \x00\x07 \u202e الطريق"


def with_texts(*texts):
    """An audit whose texts after training are these, the most toxic first."""
    rows = [
        {**SOUND["toxicity"]["worst"][0], "after": {"score": 0.9 - place / 10, "text": text}}
        for place, text in enumerate(texts)
    ]
    return audit({"toxicity.worst": rows})


def tables(page):
    """Rows of each table of a Markdown page, split at the bars that are no text."""
    blocks = re.findall(r"(?:^\|.*\n?)+", page, re.MULTILINE)
    return [[line.split("|")[1:-1] for line in block.splitlines()] for block in blocks]


def objects(pdf):
    """Objects of a PDF by number, found as a reader does: from its end, through the xref table."""
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\s*$", pdf)[1])
    assert pdf[start : start + 4] == b"xref"
    entries = re.findall(rb"(\d{10}) \d{5} n", pdf[start:])
    return {
        number: pdf[int(offset) :].split(b"endobj")[0]
        for number, offset in enumerate(entries, start=1)
        if pdf[int(offset) :].startswith(b"%d 0 obj" % number)
    }, len(entries)


def pages(pdf):
    return len(re.findall(rb"/Type /Page\b", pdf))


def test_runs_are_sorted_gated_first_and_carry_what_was_judged(tmp_path):
    summary = summed_up(
        tmp_path,
        audit(dataset="steam"),
        audit(variant="no_proj", seed=1),
        audit(variant="kl0", seed=3),
        audit(seed=11),
        audit(seed=2),
    )
    assert [(run["dataset"], run["variant"], run["seed"]) for run in summary["runs"]] == [
        ("books", "shielded", 2),
        ("books", "shielded", 11),
        ("books", "kl0", 3),
        ("books", "no_proj", 1),
        ("steam", "shielded", 42),
    ]
    run = summary["runs"][0]
    assert run["gated"] is True
    assert run["sha256"] == sha256(tmp_path / "books/shielded/seed-2/audit.json")
    assert run["verdicts"]["leak_rate"]["worse_end"] == 0.00498
    assert set(run["verdicts"]) == set(FAULTS) == set(summary["policy"]["lines"])
    assert summary["policy"]["sha256"] == sha256(POLICY)


def test_key_figures_are_before_and_after(tmp_path):
    (run,) = judged(tmp_path, audit())["runs"]
    assert run["figures"]["toxicity"]["mean"] == [0.05, pytest.approx(0.055)]
    assert run["figures"]["popularity"]["Gini"] == [0.41, 0.411]
    assert run["figures"]["privacy"]["copied descriptions"] == [0.01, 0.02]
    assert run["figures"]["privacy"]["membership AUC"] == [None, 0.51]
    # No canary was planted, so there is nothing to tell.
    assert "canary exposure, bits" not in run["figures"]["privacy"]
    assert set(run["figures"]) == {figure.section for figure in FIGURES}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": None}, "'dataset' is missing or no str"),
        ({"variant": 3}, "'variant' is missing or no str"),
        ({"seed": "42"}, "'seed' is missing or no int"),
        ({"findings": None}, "'findings' is missing or no list"),
        ({"toxicity.after.mean": interval(0.1, -0.1)}, "toxicity.after.mean needs finite numbers"),
    ],
)
def test_a_bad_audit_is_named_in_one_line(tmp_path, change, message):
    path = tmp_path / "bad.json"
    write_json(path, audit(change))
    with pytest.raises(UserError) as error:
        summary_of(tmp_path, path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "audit.json").exists()


def test_a_missing_audit_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: no such file; make it with `audit run`"):
        summary_of(tmp_path, tmp_path / "none.json")


def test_one_run_is_audited_once(tmp_path):
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path in paths:
        write_json(path, audit())
    with pytest.raises(UserError, match=r"b\.json: audits the same run as .*a\.json"):
        summary_of(tmp_path, *paths)


def summary_of(folder, *paths):
    main(
        policy=POLICY,
        audits=paths,
        out=folder / "audit.json",
        page=folder / "audit.md",
        pdf=folder / "audit.pdf",
    )


@pytest.mark.parametrize(
    ("audits", "holds", "sentence"),
    [
        ([audit()], True, "none of 7 lines of 1 gated runs (shielded) is broken"),
        (
            [audit(), audit(dict(FAULTS.values()), variant="no_proj")],
            True,
            "none of 7 lines of 1 gated runs",
        ),
        ([audit(dict(FAULTS.values()))], False, "The policy is broken: 7 of 7 lines"),
        ([audit(variant="no_proj")], False, "there is no audit of shielded"),
        (
            [audit({"fairness.gap": None, "fairness.reason": "no groups"})],
            True,
            "is broken; 1 are not evaluable",
        ),
    ],
)
def test_the_headline_says_whether_the_policy_holds(tmp_path, audits, holds, sentence):
    told, text = headline(judged(tmp_path, *audits))
    assert told is holds
    assert sentence in text


def test_the_page_shows_verdicts_figures_findings_scorer_and_texts(tmp_path):
    document = audit({"toxicity.after.mean": interval(0.3)}, findings=["toxicity: the mean rose"])
    document["privacy"]["samples"]["leaked_texts"] = ["For user A1XQ7K"]
    page = markdown(judged(tmp_path, document))
    assert "**The policy is broken: 1 of 7 lines of 1 gated runs (shielded).**" in page
    assert "✗ 0.3 [0.29, 0.31]" in page
    assert "worse end 0.31 breaks &lt; 0.2" in page
    assert "- books shielded 42: toxicity: the mean rose" in page
    assert "alt-profanity-check 1.9.1; it takes 1.20% of 1000 ordinary reviews for toxic" in page
    assert "| leaks an id or a name | For user A1XQ7K |" in page
    assert "| toxicity 0.600 | A damn fine road |" in page
    assert "| 0.05 → 0.3 |" in page


def test_no_text_breaks_out_of_its_cell(tmp_path):
    page = markdown(judged(tmp_path, with_texts(HOSTILE)))
    assert "<script>" not in page
    assert "\n# 中文" not in page
    for table in tables(page):
        assert {len(row) for row in table} == {len(table[0])}


def test_long_texts_are_cut(tmp_path):
    (run,) = judged(tmp_path, with_texts("far " * 2000))["runs"]
    assert [len(text["text"]) for text in run["worst_texts"]] == [300]


def test_texts_are_the_worst_after_training(tmp_path):
    document = with_texts("a", "b", "c", "d")
    # Listed first for what it was before training.
    document["toxicity"]["worst"][0]["after"]["score"] = 0.01
    (run,) = judged(tmp_path, document)["runs"]
    assert [text["text"] for text in run["worst_texts"]] == ["b", "c", "d"]


def test_the_pdf_opens_and_is_short(tmp_path):
    study = [
        audit(dataset=dataset, variant=variant, seed=seed, findings=[f"toxicity: {seed}"] * 9)
        for dataset in ("books", "ml25m", "steam")
        for variant in ("shielded", "no_proj", *(f"variant_{place}" for place in range(15)))
        for seed in (42, 43, 44)
    ]
    summed_up(tmp_path, *study)
    pdf = (tmp_path / "audit.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-1.")
    found, entries = objects(pdf)
    assert len(found) == entries
    streams = re.findall(rb"/FlateDecode.*?stream\n(.*?)\nendstream", pdf, re.DOTALL)
    assert streams
    assert all(zlib.decompress(stream) for stream in streams)
    assert 1 <= pages(pdf) <= 6
    summed_up(tmp_path, *study[:2])
    assert pages((tmp_path / "audit.pdf").read_bytes()) <= 2


def test_equal_audits_give_equal_bytes(tmp_path):
    texts = with_texts(HOSTILE, "a fine road")
    for folder in ("first", "second"):
        summed_up(tmp_path / folder, texts)
    first, second = (tmp_path / folder / "audit.pdf" for folder in ("first", "second"))
    assert sha256(first) == sha256(second)
    page = (tmp_path / "first" / "audit.md").read_text()
    assert page == (tmp_path / "second" / "audit.md").read_text().replace("second", "first")
    assert b"D:20000101" in first.read_bytes()


def test_letters_that_the_font_lacks_are_marked_not_dropped(tmp_path):
    plain = judged(tmp_path / "plain", with_texts("to \ufffd\ufffd"))
    other = judged(tmp_path / "other", with_texts("to 中文"))
    assert render(plain) == render(other)
    assert render(plain) != render(judged(tmp_path / "ascii", with_texts("to it")))


def verdict(holds, worse_end):
    return {"holds": holds, "worse_end": worse_end}


@pytest.mark.parametrize(
    ("verdicts", "direction", "expected"),
    [
        ([(True, 0.1), (True, 0.3), (True, 0.2)], "below", (True, 0.3)),
        ([(True, 0.1), (True, 0.3), (True, 0.2)], "above", (True, 0.1)),
        ([(False, 0.5), (False, None), (True, 0.2)], "below", (False, None)),
        # Broken for want of samples, with a smaller end than one that holds.
        ([(True, 0.004), (False, 0.003)], "below", (False, 0.003)),
        ([(None, None), (True, 0.1)], "below", (True, 0.1)),
        ([(None, None)], "below", (None, None)),
    ],
)
def test_the_worst_seed_stands_for_its_variant(verdicts, direction, expected):
    assert worst([verdict(*one) for one in verdicts], direction) == verdict(*expected)


def test_other_variants_can_be_gated(tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.read_text().replace("[shielded]", "[gentle, no_proj]"))
    path = tmp_path / "audit.json"
    write_json(path, audit(variant="gentle"))
    summary = summarise([(path, read_json(path))], load_policy(policy), policy)
    assert summary["runs"][0]["gated"] is True
    assert headline(summary) == (
        False,
        "Not shown: there is no audit of no_proj, which the policy gates.",
    )
