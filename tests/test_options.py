"""Options are declared once; what they permit is what they say."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from bundle.cli.command import super_resolve
from bundle.options import (
    CONFIG_OPTIONS,
    CommandOptions,
    InferenceOptions,
    Option,
    TrainingOptions,
    declared,
    former_names,
    size_text,
)


@pytest.mark.parametrize("cls", [InferenceOptions, TrainingOptions, CommandOptions])
def test_every_default_is_permitted_and_every_option_has_help(cls: type) -> None:
    for name, (default, about) in declared(cls).items():
        assert default is None or about.permits(default), name
        assert about.help.endswith("."), name


def test_the_command_has_every_declared_option_and_no_other() -> None:
    own = {parameter.name for parameter in super_resolve.params} - {"input", "output", "version"}
    assert own == set(declared(CommandOptions))
    assert {f.name for f in fields(CommandOptions)} == own | {"input", "output"}


def test_a_former_name_is_no_name_of_today() -> None:
    every = {**CONFIG_OPTIONS, **declared(CommandOptions)}
    assert not set(former_names(every)) & set(every)


@pytest.mark.parametrize(
    ("about", "good", "bad"),
    [
        (Option("", choices=(2, 4, 8)), [2, 8], [3, 2.0, "2", True]),
        (Option("", kind="whole", minimum=1), [1, 99], [0, 1.0, True, "1"]),
        (Option("", kind="share"), [0, 0.5, 1, True], [-0.1, 1.1, "0.5"]),
        (Option("", kind="number", minimum=0), [0, 3.5], [-1, "1", False]),
        (Option("", kind="flag"), [True, False], [1, "False"]),
        (Option("", kind="path"), ["001", Path("a")], [1, ("a", "b"), True, {"a": 1}]),
        (Option(""), ["vdsr"], [1.0, ["a"]]),
    ],
)
def test_a_value_outside_its_range_or_of_another_type_is_not_permitted(about: Option, good: list, bad: list) -> None:
    assert all(about.permits(value) for value in good)
    assert not any(about.permits(value) for value in bad)
    assert about.range_text


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5"), ("0.5", "0.5"), ("0.50x0.5", "0.5"), ("0.5X0.6", "0.5x0.6"), ((1, 2), "1x2")]
)
def test_a_voxel_size_means_the_same_however_it_is_written(value, text):
    assert size_text(value) == text


@pytest.mark.parametrize("value", ["", "x", "0", "-1", "1x", "1x2x3", "nan", "inf", True, (1, 2, 3), "0.5mm"])
def test_what_is_no_voxel_size_is_not_permitted(value):
    about = CONFIG_OPTIONS["voxel_size"][1]
    assert not about.permits(value)


@pytest.mark.parametrize(
    ("value", "good"), [("192x179", True), ("auto", True), ("192", False), ("1.5x2", False), (5, False)]
)
def test_a_matrix_is_a_word_or_two_whole_numbers(value, good):
    assert CONFIG_OPTIONS["matrix"][1].permits(value) is good
