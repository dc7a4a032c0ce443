"""Certificates: statements against independent formulas, verdicts that follow what was measured."""

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import beta

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import load_base
from shielded_recrl.explainer.lm import activation, adapter_parameters, prefix_states
from shielded_recrl.shield import serving
from shielded_recrl.shield.bases import collect_bases
from shielded_recrl.shield.basis import smaller
from shielded_recrl.shield.certificate import (
    SCORE_TOLERANCE,
    Cohort,
    certify,
    clopper_pearson,
    cohort_scores,
    conformal_quantile,
    head_sha256,
    read_out_modules,
    worst_residuals,
)
from shielded_recrl.shield.constraint import Constraint
from shielded_recrl.shield.serving import RankingHead, served_states
from tiny_world import prompts, tiny_llama, with_adapter

WIDTH, ITEMS = 64, 30
PROTECTED = prompts(4, 5, 8, seed=1)
HELDOUT = prompts(25, 5, 12, seed=2)
INVOCATION = [298, 299]


def cohort(rows, seed: int = 0) -> Cohort:
    """Prompts with other parts of the score, seen items and one item to be found."""
    rng = np.random.default_rng(seed)
    shape = (len(rows), ITEMS)
    relevant = np.zeros(shape, dtype=bool)
    relevant[np.arange(len(rows)), rng.integers(10, ITEMS, len(rows))] = True
    seen = np.zeros(shape, dtype=bool)
    seen[:, :5] = rng.random((len(rows), 5)) < 0.5
    return Cohort(rows, rng.normal(size=shape), seen, relevant)


@pytest.fixture(scope="module")
def head() -> RankingHead:
    generator = torch.Generator().manual_seed(0)
    return RankingHead(
        torch.randn(ITEMS, 8, generator=generator),
        torch.randn(8, WIDTH, generator=generator) / WIDTH,
        0.5,
    )


@pytest.fixture(scope="module")
def bases():
    """The complete span of what the protected prompts feed each module."""
    return collect_bases(tiny_llama(width=WIDTH), PROTECTED, energy=1.0)


def adapted(moved: float = 0.1):
    return with_adapter(tiny_llama(width=WIDTH), moved=moved)


def activated():
    model = get_peft_model(
        tiny_llama(width=WIDTH),
        LoraConfig(
            r=4,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            alora_invocation_tokens=INVOCATION,
        ),
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in adapter_parameters(model).values():
            weight.normal_(0, 0.1)
    return model.eval()


def shielded(bases, moved: float = 0.1):
    model = adapted(moved)
    Constraint(bases.modules, "input").attach(model)
    return model


def certified(model, head, **more):
    options = {"kind": "nullspace", "alpha": 0.1, "resamples": 50} | more
    return certify(model, head, cohort(PROTECTED, 1), cohort(HELDOUT, 2), **options)


@pytest.fixture(scope="module")
def unshielded(head):
    return certified(adapted(), head, kind="none")


@pytest.fixture(scope="module")
def nullspace(head, bases):
    return certified(shielded(bases), head, bases=bases)


# Statements on users outside the cohorts.


@pytest.mark.parametrize(
    ("n", "alpha", "expected"),
    [
        (9, 0.1, 9),  # ceil(10 * 0.9) = 9
        (19, 0.1, 18),  # ceil(20 * 0.9) = 18
        (20, 0.1, 19),  # ceil(21 * 0.9) = ceil(18.9)
        (19, 0.05, 19),
        (99, 0.45, 55),  # 100 * 0.55, which is 55.00000000000001 in floating point
        (8, 0.1, None),  # ceil(9 * 0.9) = 9 > 8
        (18, 0.05, None),
    ],
)
def test_conformal_quantile_by_hand(n, alpha, expected):
    values = np.random.default_rng(0).permutation(np.arange(1, n + 1)).astype(float)
    assert conformal_quantile(values, alpha) == expected


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.1), (30, 0.2), (100, 0.05)])
def test_conformal_coverage(n, alpha):
    """Over many draws a new value is within the bound as often as ceil((n+1)(1-alpha))/(n+1)."""
    draws = np.random.default_rng(0).lognormal(sigma=2, size=(4000, n + 1))
    covered = np.mean([row[-1] <= conformal_quantile(row[:-1], alpha) for row in draws])
    exact = np.ceil(round((n + 1) * (1 - alpha), 9)) / (n + 1)
    assert exact >= 1 - alpha
    assert covered == pytest.approx(exact, abs=4 * (exact * (1 - exact) / len(draws)) ** 0.5)


@pytest.mark.parametrize(("events", "n", "alpha"), [(0, 20, 0.05), (3, 25, 0.1), (128, 128, 0.05)])
def test_clopper_pearson_by_beta_quantiles(events, n, alpha):
    low = beta.ppf(alpha / 2, events, n - events + 1) if events else 0.0
    high = beta.ppf(1 - alpha / 2, events + 1, n - events) if events < n else 1.0
    assert clopper_pearson(events, n, alpha) == pytest.approx((low, high), abs=1e-9)


def test_statements_agree_with_the_scores(head, unshielded):
    """Recomputed from the scores of a fresh model, user by user."""
    model, users = adapted(), cohort(HELDOUT, 2)
    after = cohort_scores(model, head, users)
    with model.disable_adapter():
        before = cohort_scores(model, head, users)
    largest, changes, changed = [], [], 0
    for b, a, seen in zip(before, after, users.seen, strict=True):
        items = [i for i in range(ITEMS) if not seen[i]]
        changes += [abs(a[i] - b[i]) for i in items]
        largest.append(max(changes[-len(items) :]))
        top = [sorted(items, key=lambda i: -s[i])[:10] for s in (b, a)]
        changed += top[0] != top[1]
    got = unshielded["heldout"]
    # ceil(26 * 0.9) = 24
    assert got["conformal"]["quantile"] == sorted(largest)[23]
    assert (got["conformal"]["alpha"], got["conformal"]["n"]) == (0.1, 25)
    assert got["max_score_change"] == max(largest)
    assert got["mean_score_change"] == pytest.approx(np.mean(changes), rel=1e-12)
    assert 0 < changed == got["changed_top10"]["users"]
    assert got["changed_top10"]["share"] == changed / 25
    assert (got["changed_top10"]["low"], got["changed_top10"]["high"]) == clopper_pearson(
        changed, 25, 0.1
    )


def test_too_few_users_for_alpha(head):
    got = certified(adapted(), head, kind="none", alpha=0.01)
    assert got["heldout"]["conformal"]["quantile"] is None
    assert "99 are needed" in got["heldout"]["conformal"]["note"]
    assert "too few" in got["sentence"]


# Verdicts.


@pytest.mark.parametrize(("kind", "make"), [("separate", adapted), ("activated", activated)])
def test_a_ranking_that_never_reads_the_adapter_is_exact(head, kind, make):
    got = certified(make(), head, kind=kind)
    assert got["verdict"] == {"protected": "exact", "heldout": "exact"}
    for who in ("protected", "heldout"):
        assert got[who]["bit_identical"]
        assert got[who]["max_score_change"] == 0.0
        assert got[who]["top10_identical"] == 1.0
    assert "4 protected and 25 held-out users" in got["sentence"]


def test_an_activated_adapter_is_measured_awake(head, monkeypatch):
    """One prefill of prompt and invocation: the adapter acts on the latter, and not before."""
    model = activated()
    calls = []

    @contextmanager
    def longer(lm, counts):
        calls.append(counts)
        with activation(lm, [count + 1 for count in counts]):
            yield

    exact = certified(model, head, kind="activated")
    assert exact["verdict"] == {"protected": "exact", "heldout": "exact"}
    # Awake one token too early, the adapter reaches the token that the ranking is read at.
    monkeypatch.setattr(serving, "activation", longer)
    got = certified(model, head, kind="activated")
    assert set(calls[0]) == {len(INVOCATION)}
    assert got["verdict"] == {"protected": "approximate", "heldout": "approximate"}
    assert got["protected"]["max_score_change"] > 0.01
    assert got["sentence"].startswith("Broken promise")


def test_states_of_an_activated_adapter_are_those_of_the_base():
    """Prompts of mixed lengths side by side: equal to the bits with the adapter off, and to
    rounding to those of the base that sees no invocation."""
    model = activated()
    awake = served_states(model, HELDOUT, batch_size=4)
    with model.disable_adapter():
        assert torch.equal(served_states(model, HELDOUT, batch_size=4), awake)
    torch.testing.assert_close(awake, prefix_states(tiny_llama(width=WIDTH), HELDOUT))


def test_a_reference_in_other_shapes_does_not_break_the_promise(head):
    users = cohort(PROTECTED, 1), cohort(HELDOUT, 2)
    reference = tuple(cohort_scores(tiny_llama(width=WIDTH), head, c) for c in users)
    got = certified(activated(), head, kind="activated", reference=reference)
    assert got["verdict"] == {"protected": "exact", "heldout": "exact"}


def test_prompts_that_hold_the_invocation_are_counted(head, unshielded):
    """There PEFT alone would wake the adapter too early; serving has to say where it begins."""
    model = activated()
    assert certified(model, head, kind="activated")["prompts_with_invocation"] == 0
    assert unshielded["prompts_with_invocation"] is None
    heldout = [(5, *INVOCATION, 7), (5, 298, 7, 299), *HELDOUT[2:], (6, *INVOCATION)]
    got = certify(model, head, PROTECTED, heldout, kind="activated", resamples=10)
    assert got["prompts_with_invocation"] == 2
    assert got["verdict"] == {"protected": "exact", "heldout": "exact"}
    assert "2 of their prompts hold the invocation tokens themselves" in got["sentence"]
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([heldout[0]])).logits
        with model.disable_adapter():
            base = model(input_ids=torch.tensor([heldout[0]])).logits
    assert (alone - base).abs().max() > 0.01


def test_modules_without_room_are_counted(head, bases, nullspace):
    name = "model.layers.0.self_attn.o_proj"
    full = smaller(torch.eye(WIDTH, dtype=torch.float64), WIDTH, 1.0)
    crowded = replace(bases, groups={**bases.groups, name: name}, bases={**bases.bases, name: full})
    got = certified(shielded(crowded), head, bases=crowded)
    assert nullspace["modules_without_room"] == 0
    assert got["modules_without_room"] == 1


def test_a_broken_promise_is_said(head):
    """Scores of another LM as reference: what `separate` serves is not what it was."""
    other = tiny_llama(width=WIDTH, seed=1)
    reference = tuple(
        cohort_scores(other, head, users) for users in (cohort(PROTECTED, 1), cohort(HELDOUT, 2))
    )
    got = certified(adapted(), head, kind="separate", reference=reference)
    assert got["verdict"] == {"protected": "approximate", "heldout": "approximate"}
    assert got["sentence"].startswith("Broken promise")


def test_a_null_space_of_the_complete_span_is_exact_on_protected_users(nullspace, unshielded):
    assert nullspace["verdict"] == {"protected": "exact", "heldout": "approximate"}
    protected = nullspace["protected"]
    assert protected["max_score_change"] <= SCORE_TOLERANCE * protected["score_std"]
    assert unshielded["protected"]["max_score_change"] > 0.1 * protected["score_std"]
    assert nullspace["heldout"]["max_score_change"] > 0.01
    assert all(module["residual"] < 1e-3 for module in nullspace["modules"].values())
    assert max(module["leakage"] for module in nullspace["modules"].values()) < 1e-6


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_bases_of_the_served_precision_are_exact_in_it(head, tmp_path, precision):
    """And those of fp32 are not: the rounded weights feed later modules other inputs."""
    if precision != "bf16":
        pytest.importorskip("bitsandbytes")
    tiny_llama(width=WIDTH).save_pretrained(tmp_path)
    got = {}
    for collected in (precision, "fp32"):
        base = load_base(tmp_path, collected, torch.device("cpu"))
        bases = collect_bases(base, PROTECTED, energy=1.0)
        model = with_adapter(load_base(tmp_path, precision, torch.device("cpu")))
        Constraint(bases.modules, "input").attach(model)
        got[collected] = certified(model, head, bases=bases)
        assert got[collected]["precision"] == precision
        held = got[collected]["hashes"]["base"] == bases.about["base_sha256"]
        assert held == (collected == precision)
    assert got[precision]["verdict"]["protected"] == "exact"
    assert got["fp32"]["verdict"]["protected"] == "approximate"
    assert (got[precision]["hashes"]["quantisation"] is None) == (precision == "bf16")


def test_a_cut_off_span_is_approximate_even_where_nothing_moved(head):
    """An untrained adapter moves nothing, but no later step is held by these bases."""
    cut = collect_bases(tiny_llama(width=WIDTH), PROTECTED, energy=0.8)
    got = certified(shielded(cut, moved=0.0), head, bases=cut)
    assert got["protected"]["max_score_change"] == 0.0
    assert got["verdict"]["protected"] == "approximate"
    moved = certified(shielded(cut), head, bases=cut)
    assert moved["protected"]["max_score_change"] > SCORE_TOLERANCE
    assert max(module["residual"] for module in moved["modules"].values()) > 0.1


def test_a_module_without_a_basis_is_not_exact(head, bases):
    name = "model.layers.0.self_attn.o_proj"
    groups = {module: group for module, group in bases.groups.items() if module != name}
    got = certified(
        shielded(bases, moved=0.0), head, bases=replace(bases, groups=groups, bases=bases.bases)
    )
    assert set(got["modules"][name].values()) == {None}
    assert got["verdict"]["protected"] == "approximate"


def test_random_bases_hold_nothing(head, bases, nullspace):
    control = bases.randomised(0)
    got = certified(shielded(control), head, kind="random", bases=control)
    assert got["verdict"]["protected"] == "approximate"
    assert got["protected"]["max_score_change"] > 100 * nullspace["protected"]["max_score_change"]
    ranks = [{name: m["k"] for name, m in c["modules"].items()} for c in (got, nullspace)]
    assert ranks[0] == ranks[1]
    # What a random subspace captures is not known, and JSON has no NaN.
    assert {module["energy"] for module in got["modules"].values()} == {None}
    json.dumps(got, allow_nan=False)


def test_an_untrained_adapter_moves_nothing(head):
    got = certified(adapted(moved=0.0), head, kind="none")
    for who in ("protected", "heldout"):
        assert got[who]["max_score_change"] == got[who]["mean_score_change"] == 0.0
        assert got[who]["ndcg_change"] == got[who]["hr_change"] == 0.0
    assert got["heldout"]["conformal"]["quantile"] == 0.0
    assert got["heldout"]["changed_top10"]["low"] == 0.0 < got["heldout"]["changed_top10"]["high"]
    assert got["verdict"] == {"protected": "approximate", "heldout": "approximate"}


# Modules.


def test_worst_residual_by_explicit_computation():
    """One prompt at a time, the basis as a dense projector; all tokens, or the last one alone."""
    model = tiny_llama(width=WIDTH)
    cut = collect_bases(model, PROTECTED, energy=0.9)
    got = worst_residuals(model, cut, PROTECTED, batch_size=3)
    last_only = {
        f"model.layers.1.{name}"
        for name in (
            "self_attn.q_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    }
    assert read_out_modules(model, PROTECTED) == last_only
    assert got.keys() == cut.groups.keys()
    for name, basis in cut.modules.items():
        caught = []
        handle = model.get_submodule(name).register_forward_pre_hook(
            lambda _, arguments, caught=caught: caught.append(arguments[0][0])
        )
        with torch.no_grad():
            for row in PROTECTED:
                model(torch.tensor([row]))
        handle.remove()
        x = torch.cat([rows[-1:] if name in last_only else rows for rows in caught]).double()
        q = basis.matrix.double()
        projector = q @ q.T
        if basis.complement:
            projector = torch.eye(len(q), dtype=torch.float64) - projector
        worst = ((x - x @ projector).norm(dim=1) / x.norm(dim=1)).max()
        assert got[name] == pytest.approx(float(worst), rel=1e-3, abs=1e-5)
    assert max(got.values()) > 0.1
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_module_report(bases, nullspace):
    assert nullspace["modules"].keys() == bases.groups.keys()
    for name, module in nullspace["modules"].items():
        basis = bases.modules[name]
        assert (module["k"], module["d"]) == (basis.rank, basis.width)
        assert module["energy"] == pytest.approx(1.0)


def test_leakage_of_an_unprojected_adapter(head, bases):
    model = adapted()
    got = certified(model, head, bases=bases)
    name = "model.layers.0.self_attn.o_proj"
    a = dict(model.named_parameters())[f"base_model.model.{name}.lora_A.default.weight"].detach()
    expected = float(bases.modules[name].inside(a).norm() / a.norm())
    assert got["modules"][name]["leakage"] == pytest.approx(expected)
    assert expected > 0.1
    assert got["verdict"]["protected"] == "approximate"


def test_the_output_side_is_measured_on_lora_b(head, bases):
    """Bases of the d-wide outputs: what a ranker shield would hold."""
    name = "model.layers.0.self_attn.o_proj"
    basis = bases.modules["model.layers.0.self_attn.q_proj"]
    directions = replace(bases, groups={name: "hidden"}, bases={"hidden": basis})
    model = adapted()
    got = certified(model, head, kind="ranker", bases=directions, side="output")
    b = dict(model.named_parameters())[f"base_model.model.{name}.lora_B.default.weight"].detach()
    expected = float(basis.inside(b.T).norm() / b.norm())
    assert got["modules"][name]["leakage"] == pytest.approx(expected)
    assert got["modules"][name]["residual"] is None


# Hashes, determinism, state.


def test_hashes_change_with_what_they_are_of(head, bases, nullspace):
    def hashes(change=lambda _: None, used=head, held=bases):
        model = shielded(bases)
        with torch.no_grad():
            change(dict(model.named_parameters()))
        return certified(model, used, bases=held)["hashes"]

    same = nullspace["hashes"]
    assert hashes() == same
    assert same["base"] == bases.about["base_sha256"]
    assert same["protected_prompts"] == bases.about["prompts_sha256"]
    assert same["quantisation"] is None
    layer = "base_model.model.model.layers.1.mlp.up_proj"

    def changed(**more):
        got = hashes(**more)
        return {name for name in same if got[name] != same[name]}

    assert changed(change=lambda w: w[f"{layer}.base_layer.weight"][0, 0].add_(1e-3)) == {"base"}
    assert changed(change=lambda w: w[f"{layer}.lora_B.default.weight"][0, 0].add_(1e-3)) == {
        "adapter"
    }
    assert changed(used=replace(head, gamma=0.51)) == {"head"}
    group, basis = next(iter(bases.bases.items()))
    turned = replace(bases, bases={**bases.bases, group: replace(basis, matrix=-basis.matrix)})
    assert changed(held=turned) == {"bases"}


def test_the_scale_of_lora_is_part_of_the_adapter(head, nullspace, bases):
    model = shielded(bases)
    model.get_submodule("base_model.model.model.layers.0.mlp.up_proj").scaling["default"] = 3.0
    got = certified(model, head, bases=bases)["hashes"]
    assert got["adapter"] != nullspace["hashes"]["adapter"]


def test_a_head_without_tensors_is_known_by_its_scores(head):
    def other(hidden):
        return head(hidden).tanh()

    assert head_sha256(other, WIDTH) == head_sha256(lambda h: head(h).tanh(), WIDTH)
    assert head_sha256(other, WIDTH) != head_sha256(head, WIDTH)
    assert head_sha256(lambda h: head(h).tanh() + 1e-3, WIDTH) != head_sha256(other, WIDTH)
    linear = torch.nn.Linear(WIDTH, ITEMS)
    before = head_sha256(linear, WIDTH)
    with torch.no_grad():
        linear.bias[0] += 1e-3
    assert head_sha256(linear, WIDTH) != before


def test_equal_calls_give_equal_certificates_that_fit_json(head, bases, nullspace):
    again = certified(shielded(bases), head, bases=bases)
    assert again == nullspace
    assert json.loads(json.dumps(again, allow_nan=False)) == again


def test_certifying_leaves_the_model_as_it_was(head, bases):
    """A model in the middle of training: dropout is off for the certificate alone."""
    model = get_peft_model(
        tiny_llama(width=WIDTH),
        LoraConfig(
            r=4, lora_dropout=0.5, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM"
        ),
    )
    with torch.no_grad():
        for weight in adapter_parameters(model).values():
            weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    model.train()
    frozen = next(iter(adapter_parameters(model).values())).requires_grad_(False)
    modes = [module.training for module in model.modules()]
    trained = {name: weight.requires_grad for name, weight in model.named_parameters()}
    got = certified(model, head, kind="none", bases=bases)
    assert [module.training for module in model.modules()] == modes
    assert {name: w.requires_grad for name, w in model.named_parameters()} == trained
    assert not frozen.requires_grad
    assert certified(model, head, kind="none", bases=bases) == got


# What it says, and what it refuses.


def test_the_sentence_holds_the_numbers(nullspace, unshielded):
    for got in (nullspace, unshielded):
        text, outside = got["sentence"], got["heldout"]
        assert text.endswith(".")
        assert "\n" not in text
        for number in (
            f"{got['protected']['max_score_change']:.3g}",
            f"{got['protected']['score_std']:.3g}",
            f"{outside['max_score_change']:.3g}",
            f"{outside['conformal']['quantile']:.3g}",
            f"{outside['top10_identical']:.1%}",
            f"{outside['changed_top10']['low']:.1%} to {outside['changed_top10']['high']:.1%}",
            "90%",
            "4 protected users",
            "25 held-out users",
        ):
            assert number in text
    assert nullspace["sentence"].startswith("Promised: the scores of the 4 protected users")
    assert unshielded["sentence"].startswith("Nothing is promised")


def test_plain_prompts_are_a_cohort(head):
    got = certify(adapted(), head, PROTECTED, HELDOUT, kind="none", resamples=10)
    assert got["protected"]["ndcg_change"] is None
    assert got["heldout"]["users"] == 25


def test_scores_are_offset_and_head(head):
    model, users = tiny_llama(width=WIDTH), cohort(PROTECTED, 1)
    with torch.no_grad():
        hidden = [model.model(torch.tensor([row])).last_hidden_state[0, -1] for row in PROTECTED]
        lm = head(torch.stack(hidden)).numpy()
    got = cohort_scores(model, head, users, batch_size=3)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, users.offset + lm, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha: 0.0 is no error rate"),
        ({"kind": "activated"}, "no activated LoRA"),
        ({"kind": "separate", "merged": "fp32"}, "cannot be merged"),
    ],
)
def test_refusals(head, options, message):
    with pytest.raises(UserError, match=message) as caught:
        certified(adapted(), head, **options)
    assert "\n" not in str(caught.value)


def test_a_model_without_adapter_needs_a_reference(head):
    with pytest.raises(UserError, match="no adapter to switch off"):
        certified(tiny_llama(width=WIDTH), head)


def test_bases_of_another_model_are_refused(head, bases):
    small = with_adapter(tiny_llama(width=WIDTH, layers=1))
    with pytest.raises(UserError, match=r"the LM has no module model\.layers\.1"):
        certified(small, head, bases=bases)


def test_cohorts_that_do_not_fit_are_refused(head):
    with pytest.raises(UserError, match="none that is empty"):
        Cohort([(1, 2), ()])
    with pytest.raises(UserError, match="4 prompts, but offset has 3 rows"):
        Cohort(PROTECTED, offset=np.zeros((3, ITEMS)))
    with pytest.raises(UserError, match=r"seen has shape \(4, 7\), but the head scores \(4, 30\)"):
        cohort_scores(adapted(), head, Cohort(PROTECTED, seen=np.zeros((4, 7), dtype=bool)))
    with pytest.raises(UserError, match="not finite"):
        cohort_scores(adapted(), lambda hidden: head(hidden) / 0, Cohort(PROTECTED))
