"""A release: its card, its metadata, and that PEFT takes the folder as it stands."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file

from evidence import reaudit
from shielded_recrl.audit.policy import KEYS
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.init import save_adapter
from shielded_recrl.files import read_json, write_json
from shielded_recrl.report.model_card import AUDITED, TERMS, base_of, main, release
from tiny_world import TEMPLATES, tiny_llama, with_adapter

HUB = {"base": "TinyLlama/TinyLlama-1.1B", "revision": "a" * 40, "precision": "bf16"}
READ = {"ratings.csv": "c0ffee"}
LEAKS = {"texts": 700, "leaks": 1, "leak_rate": 1 / 700, "leak_rate_upper": 0.0068}
FACTS = {"items": 240, "kept": 8448, "inputs": READ}


@pytest.fixture
def trained(study):
    """Run, audit and statistics of books/shielded/seed-43, with an adapter."""
    run, audit = study.runs[1], study.audits[1]
    assert run.parts[-3:] == ("books", "shielded", "seed-43")
    (run / "adapter").mkdir()
    save_adapter(with_adapter(tiny_llama()), run / "adapter")
    point(run, "results/explainer/books/embedded/model")
    evaluation = read_json(run / "evaluation.json")
    clicks = {"before": 0.3, "after": 0.33, "relative": 1.1}
    ends = {"relative_low": 1.05, "relative_high": 1.15}
    evaluation["simulators"] = dict.fromkeys(("claims", "examination"), clicks | ends)
    write_json(run / "evaluation.json", evaluation)
    (stats,) = (path for path in study.stats if path.parent.name == "books")
    write_json(stats, read_json(stats) | FACTS)
    reaudit(run, audit)
    audited = read_json(audit)
    audited["privacy"]["samples"] = LEAKS
    audited["toxicity"]["after"]["p95"] = {"mean": 0.11, "low": 0.1, "high": 0.12}
    write_json(audit, audited)
    return {"run": run, "audit": audit, "stats": stats}


def point(run, base):
    """Let an adapter name a base."""
    path = run / "adapter" / "adapter_config.json"
    config = read_json(path) | {"base_model_name_or_path": base}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def released(trained, out, **arguments):
    main(**trained, templates=TEMPLATES, out=out, **arguments)
    return out, (out / "README.md").read_text()


def test_peft_takes_the_folder_as_it_stands(trained, tmp_path):
    out, _ = released(trained, tmp_path / "release")
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "certificate.json",
    ]
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        plain = tiny_llama()(ids).logits
        own, copied = (
            PeftModel.from_pretrained(tiny_llama(), folder).eval()(ids).logits
            for folder in (trained["run"] / "adapter", out)
        )
    assert torch.equal(own, copied)
    assert (own - plain).abs().max() > 0.1
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (out / name).read_bytes() == (trained["run"] / "adapter" / name).read_bytes()
    assert read_json(out / "certificate.json") == read_json(trained["run"] / "certificate.json")


def test_a_second_release_replaces_the_first_and_has_equal_bytes(trained, tmp_path):
    def content():
        out, _ = released(trained, tmp_path / "release")
        return {path.name: path.read_bytes() for path in out.iterdir()}

    first = content()
    (tmp_path / "release" / "stray").write_text("x")
    assert content() == first


def test_no_path_of_this_machine_is_in_it(trained, tmp_path):
    point(trained["run"], "/home/someone/models/base")
    out, text = released(trained, tmp_path / "release", base="/home/someone/models/base")
    config = read_json(out / "adapter_config.json")
    assert config["base_model_name_or_path"] == "base"
    own = read_json(trained["run"] / "adapter" / "adapter_config.json")
    assert {key for key in own if own[key] != config[key]} == {"base_model_name_or_path"}
    assert load_file(out / "adapter_model.safetensors").keys()
    assert "/home" not in text
    assert str(tmp_path) not in text
    assert "local folder `base`" in text


@pytest.mark.parametrize(
    ("path", "arguments", "name"),
    [
        ("../models/secret/base", {"base": "../models/secret/base"}, "base"),
        ("resources/models/TinyLlama--TinyLlama-1.1B", HUB, HUB["base"]),
        ("/somewhere/results/explainer/books/embedded/model", {}, "embedded"),
    ],
)
def test_a_base_goes_by_its_name_and_not_by_where_it_lay(trained, tmp_path, path, arguments, name):
    point(trained["run"], path)
    out, _ = released(trained, tmp_path / "release", **arguments)
    assert read_json(out / "adapter_config.json")["base_model_name_or_path"] == name


def test_metadata_of_an_adapter_of_a_published_base(trained, tmp_path):
    stats = read_json(trained["stats"]) | {"synthetic": False, "inputs": {"Books.csv.gz": "00ff"}}
    write_json(trained["stats"], stats)
    out, text = released(trained, tmp_path / "release", **HUB)
    data = ModelCard.load(out / "README.md").data.to_dict()
    assert data == yaml.safe_load(text.split("---\n")[1])
    assert data["base_model"] == HUB["base"]
    assert data["base_model_relation"] == "adapter"
    assert (data["library_name"], data["pipeline_tag"]) == ("peft", "text-generation")
    assert (data["license"], data["license_name"]) == ("other", TERMS["books"].name)
    assert data["license_link"] == TERMS["books"].link
    assert data["datasets"] == ["McAuley-Lab/Amazon-Reviews-2023"]
    assert "synthetic-data" not in data["tags"]
    assert f'revision="{HUB["revision"]}"' in text
    assert TERMS["books"].terms in text


def test_metadata_of_an_adapter_of_the_embedded_world(trained, tmp_path):
    out, text = released(trained, tmp_path / "release")
    data = ModelCard.load(out / "README.md").data.to_dict()
    assert data["license"] == "mit"
    assert not {"base_model", "datasets", "license_name"} & data.keys()
    assert "synthetic-data" in data["tags"]
    assert "**Synthetic.**" in text
    assert "The data are synthetic: nothing follows" in text


@pytest.mark.parametrize("dataset", sorted(TERMS))
def test_every_dataset_has_its_terms(dataset):
    terms = TERMS[dataset]
    assert terms.link.startswith("https://")
    # What the Hub takes for a name of a licence.
    assert re.fullmatch(r"[a-z0-9-.]+", terms.name)


def test_the_card_tells_what_was_measured(trained, tmp_path):
    _, text = released(trained, tmp_path / "release")
    certificate = read_json(trained["run"] / "certificate.json")
    assert certificate["sentence"].split("|")[0] in text
    assert "**approximate** for held-out users" in text
    assert "not measured: bitsandbytes is not installed" in text
    assert "| Click rate, simulator `examination` | 0.300 | 0.330 | 1.100 (1.050 to 1.150)" in text
    evaluation = read_json(trained["run"] / "evaluation.json")
    change = evaluation["ndcg_change"]
    assert f"{change['mean']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f})" in text
    share = evaluation["drift"]["heldout"]["changed_top10"]
    assert f"{1 - share['share']:.1%} ({1 - share['high']:.1%} to {1 - share['low']:.1%})" in text
    assert (TEMPLATES / "request.txt").read_text() in text
    assert "Clicks are simulated" in text
    assert "| ratings.csv | `c0ffee` |" in text


def test_the_card_tells_what_the_audit_found(trained, tmp_path):
    assert AUDITED.keys() == KEYS.keys()
    audit = read_json(trained["audit"])
    audit["toxicity"]["after"]["mean"] = {"mean": 0.05, "low": 0.04, "high": 0.06}
    audit["fairness"] = {"gap": None}
    audit["findings"] = ["privacy: 1 of 700 texts | <b>"]
    write_json(trained["audit"], audit)
    _, text = released(trained, tmp_path / "release")
    assert "| Mean toxicity of a text | 0.0500 (0.0400 to 0.0600) |" in text
    assert "0.0014 of 700 texts (at most 0.0068)" in text
    assert "| Largest gap between two user groups | not evaluable |" in text
    assert "- privacy: 1 of 700 texts &#124; &lt;b>" in text


@pytest.mark.parametrize("findings", [None, "none"])
def test_an_audit_without_findings_is_not_one_that_found_nothing(trained, tmp_path, findings):
    audit = read_json(trained["audit"])
    _, text = released(trained, tmp_path / "release")
    assert "No findings." in text
    write_json(trained["audit"], audit | {"findings": findings})
    with pytest.raises(UserError, match="its audit has no list 'findings'"):
        released(trained, tmp_path / "release")


def test_an_audit_without_a_number_is_named(trained, tmp_path):
    audit = read_json(trained["audit"])
    del audit["privacy"]["samples"]["texts"]
    write_json(trained["audit"], audit)
    with pytest.raises(UserError, match=r"privacy\.samples of its audit lacks a number"):
        released(trained, tmp_path / "release")


@pytest.mark.parametrize(
    ("kind", "said"),
    [("separate", "Rank with the adapter off"), ("activated", "acts from the request on")],
)
def test_an_adapter_that_must_not_be_merged_says_so(trained, tmp_path, kind, said):
    path = trained["run"] / "certificate.json"
    certificate = read_json(path) | {"kind": kind}
    del certificate["merges"]
    write_json(path, certificate)
    _, text = released(trained, tmp_path / "release")
    assert "Do not merge it" in text
    assert said in text


def test_tables_are_rectangular(trained, tmp_path):
    _, text = released(trained, tmp_path / "release")
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 4
    for lines in (table.splitlines() for table in tables):
        assert len({line.count("|") for line in lines}) == 1


def test_what_is_missing_is_named(trained, tmp_path):
    with pytest.raises(UserError, match="needs the commit"):
        base_of("TinyLlama/TinyLlama-1.1B", None, "fp32")
    with pytest.raises(UserError, match=r"prefix\.txt: no such file"):
        main(**trained, templates=tmp_path, out=tmp_path / "release")
    (trained["run"] / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="train the run again"):
        released(trained, tmp_path / "release")
    assert not (tmp_path / "release").exists()
    assert not list(tmp_path.glob(".release*"))


def test_a_release_copies_bytes_only(trained, tmp_path):
    path = trained["run"] / "adapter" / "adapter_config.json"
    odd = json.dumps(read_json(path))
    path.write_text(odd)
    release(trained["run"], base_of("embedded", None, "fp32"), tmp_path)
    assert Path(tmp_path, "adapter_config.json").read_text() == odd
