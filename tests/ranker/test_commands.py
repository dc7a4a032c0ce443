"""`ranker train` and `ranker evaluate` as a user runs them."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from command_line import elsewhere, here
from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, read_jsonl, sha256
from shielded_recrl.ranker import evaluate, train
from shielded_recrl.ranker.data import Sequences, load_splits
from shielded_recrl.ranker.sasrec import load
from shielded_recrl.ranker.settings import RankerSettings
from shielded_recrl.resume import load_progress, save_progress
from shielded_recrl.settings import flags

QUICK = RankerSettings(dim=16, dropout=0.2, max_epochs=20, evaluate_every=1, learning_rate=5e-3)


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """Folder of both commands' outputs."""
    out = tmp_path_factory.mktemp("ranker")
    train.main(data=world, out=out, scratch=out.with_name("scratch"), seed=7, settings=QUICK)
    evaluate.main(data=world, model=out / "model.safetensors", out=out)
    return out


def test_it_beats_popularity(trained):
    metrics = read_json(trained / "metrics.json")
    popularity = metrics["popularity"]["test"]
    for name in ("ndcg@10", "hr@10", "mrr@10"):
        assert metrics["test"][name] > 1.3 * popularity[name]
    assert metrics["test"]["users"] == metrics["valid"]["users"] == 150


def test_states_score_like_the_model(trained, world):
    states = load_file(trained / "states.safetensors")
    model, _ = load(trained / "model.safetensors")
    splits = load_splits(world)
    assert {name: (a.dtype, a.shape) for name, a in states.items()} == {
        "items": (np.float32, (101, 16)),
        "valid_users": (np.float32, (151, 16)),
        "test_users": (np.float32, (151, 16)),
    }
    assert not any(array[0].any() for array in states.values())
    for split in ("valid", "test"):
        history = torch.tensor(splits.history(split, 5))[None].long()
        with torch.no_grad():
            expected = model.logits(model(history)[0, -1])
        got = states["items"][1:] @ states[f"{split}_users"][5]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_the_best_weights_are_kept(trained, world):
    """Evaluating the saved model gives the best validation figure of the log, not the last."""
    rows = read_jsonl(trained / "train.jsonl")
    _, checkpoint = load(trained / "model.safetensors")
    best = max(rows, key=lambda row: row["ndcg@10"])
    assert checkpoint.best_epoch == best["epoch"]
    assert read_json(trained / "metrics.json")["valid"]["ndcg@10"] == pytest.approx(best["ndcg@10"])


def test_patience_ends_training_and_restores_the_best(world, monkeypatch):
    """Validation figures are scripted, so that the best epoch is neither the first nor the last."""
    figures, weights = iter([0.1, 0.3, 0.2, 0.3, 0.9]), []

    def scripted(model, *_):
        weights.append(model.items.weight.detach().clone())
        return next(figures)

    monkeypatch.setattr(train, "validation_ndcg", scripted)
    settings = QUICK.model_copy(update={"patience": 2})
    fit = train.fit_sasrec(load_splits(world), settings, seed=0)
    assert (fit.best_epoch, len(fit.history)) == (2, 4)
    assert torch.equal(fit.weights["items.weight"], weights[1])
    assert not torch.equal(fit.weights["items.weight"], weights[3])


def test_the_last_epoch_is_always_validated(world):
    settings = QUICK.model_copy(update={"max_epochs": 3, "evaluate_every": 2})
    history = train.fit_sasrec(load_splits(world), settings, seed=0).history
    assert [row["ndcg@10"] is None for row in history] == [True, False, False]


def test_the_test_split_is_not_looked_at(world):
    splits = load_splits(world)
    nothing = Sequences.from_rows([[]] * (splits.n_users + 1))
    blind = dataclasses.replace(splits, test=nothing)
    settings = QUICK.model_copy(update={"max_epochs": 2})
    assert (
        train.fit_sasrec(splits, settings, 0).history
        == train.fit_sasrec(blind, settings, 0).history
    )


def test_the_seed_decides_and_nothing_global_changes(world):
    splits, settings = load_splits(world), QUICK.model_copy(update={"max_epochs": 2})
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = train.fit_sasrec(splits, settings, 0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert train.fit_sasrec(splits, settings, 0).history == first.history
    assert train.fit_sasrec(splits, settings, 1).history != first.history


@pytest.mark.parametrize("loss", ["ce", "sampled_softmax"])
def test_a_resumed_run_ends_in_the_same_bytes(world, tmp_path, loss):
    """Killed after any validation, training goes on to the very weights of a run that was not."""
    splits = load_splits(world)
    settings = QUICK.model_copy(update={"max_epochs": 5, "evaluate_every": 2, "loss": loss})
    states = []
    whole = train.fit_sasrec(splits, settings, 3, checkpoint=states.append)
    assert [state.step for state in states] == [2, 4]
    for state in states:
        save_progress(tmp_path / "progress.safetensors", state, "owner")
        saved = load_progress(tmp_path / "progress.safetensors", "owner")
        again = train.fit_sasrec(splits, settings, 3, saved)
        assert again.history == whole.history
        for name, weight in whole.weights.items():
            assert torch.equal(again.weights[name], weight)


def test_a_killed_command_goes_on_where_it_was(world, tmp_path, monkeypatch, capsys):
    settings = QUICK.model_copy(update={"max_epochs": 4, "patience": 9})
    folders = {"data": world, "scratch": tmp_path / "scratch"}
    train.main(**folders, out=tmp_path / "whole", seed=3, settings=settings)

    def killed(path, progress, owner):
        save_progress(path, progress, owner)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "save_progress", killed)
        with pytest.raises(KeyboardInterrupt):
            train.main(**folders, out=tmp_path / "out", seed=3, settings=settings)
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    # Another seed is another run, and starts from its beginning; it keeps its state elsewhere.
    shutil.copytree(tmp_path / "scratch", tmp_path / "copy")
    train.main(data=world, scratch=tmp_path / "copy", out=tmp_path / "o", seed=4, settings=settings)
    assert "resumed" not in capsys.readouterr().err
    train.main(**folders, out=tmp_path / "out", seed=3, settings=settings)
    assert "resumed after epoch 1" in capsys.readouterr().err
    assert not list((tmp_path / "scratch").iterdir())
    for name in ("model.safetensors", "train.jsonl"):
        assert sha256(tmp_path / "out" / name) == sha256(tmp_path / "whole" / name)


def test_bf16_trains(world):
    """Autocast leaves the weights in fp32, and the losses close to those of fp32."""
    splits, settings = load_splits(world), QUICK.model_copy(update={"max_epochs": 2})
    exact = train.fit_sasrec(splits, settings, 0)
    rough = train.fit_sasrec(splits, settings.model_copy(update={"precision": "bf16"}), 0)
    assert {weight.dtype for weight in rough.weights.values()} == {torch.float32}
    losses = [[row["loss"] for row in fit.history] for fit in (exact, rough)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert losses[0] != losses[1]


def test_divergence_is_one_line(world):
    settings = QUICK.model_copy(update={"learning_rate": 1e30, "max_epochs": 3})
    with pytest.raises(UserError, match=r"diverged in epoch [12].*lower ranker\.learning_rate"):
        train.fit_sasrec(load_splits(world), settings, 0)


@pytest.mark.slow
def test_a_compiled_model_trains_alike(world):
    splits, settings = load_splits(world), QUICK.model_copy(update={"max_epochs": 1, "dropout": 0})
    plain = train.fit_sasrec(splits, settings, 0)
    compiled = train.fit_sasrec(splits, settings.model_copy(update={"compile": True}), 0)
    assert compiled.history[0]["loss"] == pytest.approx(plain.history[0]["loss"], rel=1e-4)
    assert compiled.weights.keys() == plain.weights.keys()


@pytest.mark.slow
def test_a_compiled_model_in_bf16_with_dropout_resumes(world):
    settings = QUICK.model_copy(update={"max_epochs": 2, "precision": "bf16", "compile": True})
    states = []
    whole = train.fit_sasrec(load_splits(world), settings, 0, checkpoint=states.append)
    again = train.fit_sasrec(load_splits(world), settings, 0, states[0])
    assert whole.history[1]["loss"] < whole.history[0]["loss"]
    assert again.history == whole.history


def test_validation_reads_at_most_so_many_users(world):
    splits = load_splits(world)
    users = train.validation_users(splits, 40, seed=1)
    assert len(users) == len(set(users)) == 40
    assert set(users) <= set(splits.evaluable("valid"))
    assert np.array_equal(users, train.validation_users(splits, 40, seed=1))
    assert len(train.validation_users(splits, 10_000, seed=1)) == len(splits.evaluable("valid"))


def test_a_rerun_writes_the_same_bytes(trained, world, tmp_path):
    """Another process, settings as flags: both commands repeat byte for byte."""
    words = ["--data", world, "--out", tmp_path, "--scratch", tmp_path.with_name("s")]
    words += ["--seed", 7, *flags(QUICK).split()]
    model = tmp_path / "model.safetensors"
    done = elsewhere(
        ("ranker", "train", *words),
        ("ranker", "evaluate", "--data", world, "--model", model, "--out", tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert any(line.startswith(f"wrote {model}") for line in done.stdout.splitlines())
    names = ["model.safetensors", "train.jsonl", "metrics.json", "states.safetensors"]
    names += ["card.md", "curve.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for name in names:
        assert sha256(tmp_path / name) == sha256(trained / name), name


def test_errors_are_one_line(trained, dataset, tmp_path):
    small = dataset([{"train": [1, 2], "valid": [3], "test": [4]}], n_items=5)
    model = trained / "model.safetensors"
    done = here("ranker", "evaluate", "--data", small, "--model", model, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith(
            f"{model}: trained on 100 items, but {small / 'items.parquet'} has 5; "
            "train again on this dataset"
        )
    )
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"train": [1, 2], "test": [3]}, r"valid\.parquet: no user has a new item"),
        ({"train": [1], "valid": [2], "test": [3]}, r"train\.parquet: no user has two"),
    ],
)
def test_data_without_anything_to_learn_is_refused(dataset, tmp_path, rows, message):
    folder = dataset([rows], n_items=4)
    with pytest.raises(UserError, match=message):
        train.main(
            data=folder, out=tmp_path / "out", scratch=tmp_path / "s", seed=0, settings=QUICK
        )
    assert not (tmp_path / "out").exists()


def test_a_test_split_without_anything_to_find_is_refused(dataset, tmp_path):
    folder = dataset([{"train": [1, 2, 3], "valid": [4], "test": [1]}] * 3, n_items=4)
    settings = QUICK.model_copy(update={"max_epochs": 1})
    train.main(data=folder, out=tmp_path, scratch=tmp_path / "s", seed=0, settings=settings)
    with pytest.raises(UserError, match=r"test\.parquet: no user has a new item"):
        evaluate.main(data=folder, model=tmp_path / "model.safetensors", out=tmp_path)
    assert not (tmp_path / "metrics.json").exists()


def test_users_without_a_history_have_zero_states(dataset, tmp_path):
    rows = [{"train": [1, 2, 3], "valid": [4], "test": [5]}, {}, {"valid": [2], "test": [3]}]
    folder = dataset(rows, n_items=5)
    train.main(data=folder, out=tmp_path, scratch=tmp_path / "s", seed=0, settings=QUICK)
    evaluate.main(data=folder, model=tmp_path / "model.safetensors", out=tmp_path)
    states = load_file(tmp_path / "states.safetensors")
    assert states["valid_users"].any(axis=1).tolist() == [False, True, False, False]
    assert states["test_users"].any(axis=1).tolist() == [False, True, False, True]
