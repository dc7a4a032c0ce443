"""Merged models: the adapter is in the weights, and each precision is measured for itself."""

import json
import resource
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import load_base
from shielded_recrl.explainer.init import save_adapter
from shielded_recrl.explainer.lm import load_adapter, prefix_states
from shielded_recrl.shield.bases import collect_bases
from shielded_recrl.shield.certificate import Cohort, certify, cohort_scores
from shielded_recrl.shield.constraint import Constraint
from shielded_recrl.shield.digests import weights_sha256
from shielded_recrl.shield.merge import certify_merged, merged
from shielded_recrl.shield.serving import RankingHead
from tiny_world import prompts, tiny_llama, with_adapter

CPU = torch.device("cpu")
WIDTH = 64
PROTECTED = prompts(4, 5, 8, seed=1)
HELDOUT = prompts(20, 5, 12, seed=2)


@pytest.fixture(scope="module")
def head() -> RankingHead:
    generator = torch.Generator().manual_seed(0)
    return RankingHead(
        torch.randn(30, 8, generator=generator),
        torch.randn(8, WIDTH, generator=generator) / WIDTH,
        1.0,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, and an adapter in the null space of the protected prompts' complete span."""
    folder = tmp_path_factory.mktemp("merge")
    base = tiny_llama(width=WIDTH)
    base.save_pretrained(folder / "base")
    bases = collect_bases(base, PROTECTED, energy=1.0)
    model = with_adapter(base, moved=0.1)
    Constraint(bases.modules, "input").attach(model)
    save_adapter(model, folder / "adapter")
    return folder / "base", folder / "adapter"


@pytest.fixture(scope="module")
def certificates(folders, head):
    return certify_merged(
        *folders, head, PROTECTED, HELDOUT, ["fp32", "bf16"], device=CPU, alpha=0.1, resamples=20
    )


def test_a_merged_model_computes_what_base_and_adapter_do(folders):
    rows = prompts(6, 4, 10, seed=5)
    beside = load_adapter(load_base(folders[0], "fp32", CPU), folders[1])
    model = merged(*folders, "fp32", CPU)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert not any(weight.requires_grad for weight in model.parameters())
    expected = prefix_states(beside, rows)
    torch.testing.assert_close(prefix_states(model, rows), expected, atol=1e-4, rtol=1e-4)
    with beside.disable_adapter():
        assert not torch.allclose(prefix_states(beside, rows), expected, atol=0.01)


def test_bf16_is_the_fp32_merge_rounded_once(folders):
    exact, rounded = (dict(merged(*folders, p, CPU).named_parameters()) for p in ("fp32", "bf16"))
    for name, weight in exact.items():
        assert torch.equal(rounded[name], weight.bfloat16())


def test_the_reference_is_the_base_in_the_same_precision(folders, head, certificates):
    base, model = load_base(folders[0], "bf16", CPU), merged(*folders, "bf16", CPU)
    before, after = (cohort_scores(lm, head, Cohort(PROTECTED)) for lm in (base, model))
    got = certificates["bf16"]
    assert got["protected"]["max_score_change"] == abs(after - before).max()
    assert got["hashes"]["base"] == weights_sha256(base)
    assert got["hashes"]["merged"] == weights_sha256(model)


def test_merging_into_bf16_moves_protected_scores(certificates):
    """In fp32 they stay to rounding; the bf16 rounding of W + BA is not that of W."""
    fine, coarse = (certificates[p]["protected"] for p in ("fp32", "bf16"))
    assert fine["max_score_change"] < 1e-4 * fine["score_std"]
    assert coarse["max_score_change"] > 10 * fine["max_score_change"]
    assert coarse["max_score_change"] > 1e-3 * coarse["score_std"]


def test_nothing_is_promised_of_a_merged_model(certificates):
    for precision, got in certificates.items():
        assert (got["merged"], got["precision"]) == (precision, precision)
        assert got["verdict"] == {"protected": "approximate", "heldout": "approximate"}
        assert got["sentence"].startswith(
            f"With the adapter merged into {precision} nothing is promised"
        )
        json.dumps(got, allow_nan=False)


def test_the_adapter_is_the_one_certified_before_the_merge(folders, head, certificates):
    model = load_adapter(load_base(folders[0], "fp32", CPU), folders[1])
    before = certify(model, head, PROTECTED, HELDOUT, kind="nullspace", resamples=20)["hashes"]
    for got in certificates.values():
        assert got["hashes"]["adapter"] == before["adapter"]
    assert certificates["fp32"]["hashes"]["base"] == before["base"]


def test_an_untrained_adapter_leaves_every_bit_in_every_precision(folders, head, tmp_path):
    pytest.importorskip("bitsandbytes")
    save_adapter(with_adapter(tiny_llama(width=WIDTH), moved=0.0), tmp_path / "adapter")
    got = certify_merged(
        folders[0], tmp_path / "adapter", head, PROTECTED, HELDOUT, device=CPU, resamples=20
    )
    assert list(got) == ["fp32", "bf16", "nf4"]
    for certificate in got.values():
        assert certificate["protected"]["bit_identical"]
        assert certificate["heldout"]["bit_identical"]
        assert certificate["hashes"]["merged"] == certificate["hashes"]["base"]
    quantisations = {p: c["hashes"]["quantisation"] for p, c in got.items()}
    assert quantisations["fp32"] is quantisations["bf16"] is None
    assert len(quantisations["nf4"]) == 64


def test_merging_into_nf4_moves_them_further(folders, head, certificates):
    pytest.importorskip("bitsandbytes")
    got = certify_merged(
        *folders, head, PROTECTED, HELDOUT, ["nf4"], device=CPU, alpha=0.1, resamples=20
    )["nf4"]
    assert got["precision"] == "nf4"
    changes = {p: c["protected"]["max_score_change"] for p, c in {**certificates, "x": got}.items()}
    assert changes["fp32"] < changes["bf16"] < changes["x"]
    assert got["verdict"]["protected"] == "approximate"


def test_without_bitsandbytes_nf4_is_said_to_be_unmeasured(folders, head, monkeypatch):
    # None in sys.modules is how Python marks a module that cannot be imported.
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    got = certify_merged(
        *folders, head, PROTECTED, HELDOUT, ["fp32", "nf4"], device=CPU, resamples=20
    )
    assert got["nf4"] == {
        "merged": "nf4",
        "verdict": None,
        "sentence": "not measured: bitsandbytes is not installed",
    }
    assert got["fp32"]["protected"]["users"] == len(PROTECTED)


def test_an_activated_adapter_is_refused(folders, head, tmp_path):
    config = LoraConfig(
        r=2,
        target_modules=["q_proj"],
        task_type="CAUSAL_LM",
        alora_invocation_tokens=[298, 299],
    )
    save_adapter(get_peft_model(tiny_llama(width=WIDTH), config), tmp_path / "adapter")
    for attempt in (
        lambda: merged(folders[0], tmp_path / "adapter", "fp32", CPU),
        lambda: certify_merged(folders[0], tmp_path / "adapter", head, PROTECTED, HELDOUT),
    ):
        with pytest.raises(UserError, match="an activated adapter cannot be merged") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_without_a_precision_nothing_is_loaded(head, tmp_path):
    missing = tmp_path / "missing"
    assert certify_merged(missing, missing, head, PROTECTED, HELDOUT, []) == {}


def test_a_full_disk_is_one_line(folders):
    """No file may grow to the size of the weights, as if the disk had no more room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match="the merged model cannot be written") as caught:
            merged(*folders, "fp32", CPU)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "set TMPDIR" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_separate_ranking_is_refused(folders, head):
    with pytest.raises(UserError, match="cannot be merged"):
        certify_merged(*folders, head, PROTECTED, HELDOUT, ["fp32"], kind="separate", device=CPU)
