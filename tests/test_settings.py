"""Settings become flags, and flags become the same settings again."""

import importlib
import pkgutil
import shlex
import types
import typing
from pathlib import Path

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import shielded_recrl
from shielded_recrl.config import Cell, Config, Variant, VariantSettings
from shielded_recrl.explainer.settings import ExplainerSettings, PromptSettings
from shielded_recrl.rl.settings import RewardSettings, RLSettings
from shielded_recrl.settings import Settings, flags, section
from shielded_recrl.shield.settings import RankingSettings, RoleSettings

# Read from the config file alone, never from flags.
CONFIG_ONLY = {Config, Cell, Variant, VariantSettings}


def models():
    """Every settings model of the package."""
    for module in pkgutil.walk_packages(shielded_recrl.__path__, "shielded_recrl."):
        if module.name.endswith(".settings") or module.name.count(".") == 1:
            importlib.import_module(module.name)
    found, queue = [], [Settings]
    while queue:
        children = queue.pop().__subclasses__()
        found += children
        queue += children
    return sorted(
        {m for m in found if m.__module__.startswith("shielded_recrl.")} - CONFIG_ONLY,
        key=lambda model: model.__name__,
    )


def parse(model, text):
    """What a command makes of these flags."""
    return tyro.cli(
        model,
        args=shlex.split(text),
        config=(tyro.conf.FlagConversionOff,),
    )


def bounds_of(rules):
    """Those of the rules of a field that bound a number."""
    return {
        key: getattr(bound, key)
        for bound in rules
        for key in ("ge", "gt", "le", "lt")
        if hasattr(bound, key)
    }


def other(name, field, value):
    """Valid values of a field, for models the default alone says too little about."""
    annotation = field.annotation
    bounds = bounds_of(field.metadata)
    if name == "heads":
        return st.just(1)  # It has to divide the width.
    if name == "scorer":
        return st.sampled_from([value, "./a scorer"])  # A hub id has to have a revision.
    if isinstance(value, BaseModel):
        return instances(type(value))
    for rule in field.metadata:
        if pattern := getattr(rule, "pattern", None):
            words = st.from_regex(pattern, fullmatch=True, alphabet=st.characters(codec="ascii"))
            return st.none() | words.filter(lambda text: text != "None")
    if typing.get_origin(annotation) is typing.Literal:
        return st.sampled_from(typing.get_args(annotation))
    arguments = typing.get_args(annotation)
    if isinstance(annotation, types.UnionType):
        (inner,) = [kind for kind in arguments if kind is not type(None)]
        return st.none() | plain(inner, bounds)
    if typing.get_origin(annotation) is tuple:
        most = min(
            [4, *(rule.max_length for rule in field.metadata if hasattr(rule, "max_length"))]
        )
        return st.lists(plain(arguments[0], bounds), min_size=1, max_size=most).map(tuple)
    return plain(annotation, bounds)


def plain(kind, bounds):
    if typing.get_origin(kind) is typing.Annotated:
        kind, field = typing.get_args(kind)
        bounds = bounds_of(field.metadata)
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    if kind is bool:
        return st.booleans()
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if kind is int:
        return st.integers(low, high)
    if kind is float:
        return st.floats(
            low,
            high,
            exclude_min="gt" in bounds,
            exclude_max="lt" in bounds,
            allow_nan=False,
            allow_infinity=False,
        )
    if kind is Path:
        paths = plain(str, bounds).map(Path)
        return paths.filter(lambda path: str(path) != "None" and not str(path).startswith("-"))
    assert kind is str
    # `None` is how flags say nothing; a leading dash would read as a flag.
    return st.text(
        st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1
    ).filter(lambda text: text != "None" and not text.startswith("-"))


def instances(model):
    return st.builds(
        model,
        **{name: other(name, field, field.default) for name, field in model.model_fields.items()},
    )


def test_models_are_found():
    names = {model.__name__ for model in models()}
    assert {"RLSettings", "RankingSettings", "DatasetSettings", "ResourceSettings"} <= names
    assert len(names) >= 15


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
class TestEveryModel:
    def test_every_field_is_described(self, model):
        for name, field in model.model_fields.items():
            assert field.description, name
            assert field.description.endswith("."), name

    def test_default_survives_the_command_line(self, model):
        assert parse(model, flags(model())) == model()

    def test_default_names_every_field(self, model):
        given = {word for word in shlex.split(flags(model())) if word.startswith("--")}
        for name, field in model.model_fields.items():
            if not isinstance(field.default, BaseModel):
                assert f"--{name.replace('_', '-')}" in given


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_value_survives_the_command_line(model, data):
    value = data.draw(instances(model))
    assert parse(model, flags(value)) == value


def test_unknown_and_infinite_values_are_refused():
    with pytest.raises(ValueError, match="Extra inputs"):
        RLSettings(stepz=1)
    with pytest.raises(ValueError, match="finite"):
        RLSettings(learning_rate=float("inf"))
    with pytest.raises(ValueError, match="frozen"):
        RLSettings().steps = 3


def test_flags_of_a_nested_model_carry_its_name():
    text = flags(RLSettings(steps=7, reward=RewardSettings(target_words=9)))
    assert text.startswith("--steps 7 ")
    assert text.endswith("--reward.target-words 9")


def test_flags_quote_what_a_shell_would_split():
    text = flags(ExplainerSettings(base="./my models/a b"))
    assert "--base './my models/a b'" in text


def test_section_takes_the_fields_of_the_part_alone():
    whole = RankingSettings(protected_users=3, heldout_users=4, epochs=5)
    assert section(whole, RoleSettings) == RoleSettings(protected_users=3, heldout_users=4)
    assert section(ExplainerSettings(history_items=2), PromptSettings).history_items == 2
    assert "epochs" not in flags(section(whole, RoleSettings))
