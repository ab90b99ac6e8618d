"""Names on MONAI's command line are taken as they were typed, whatever python-fire makes of them."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import blob_volume
from fire.parser import DefaultParseValue
from hypothesis import example, given
from hypothesis import strategies as st
from monai.bundle import ConfigWorkflow

from bundle.workflow.options import names_as_typed, wrong_values
from bundle.workflow.typed_text import as_typed, typed_text

RETYPED = ["100307", "001", "20261127", "1e3", "a,b", "[a]", "{a: b}", "(1)", "True", "out#1", "0x10", "1_000", "b'x'"]
SEEN: dict[str, object] = {}


def taken(options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the components of a config get when these options are typed."""
    config = {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/outputs'",
        "weights": None,
        "scale": 2,
        "initialize": ["$1"],
        "run": [
            {"_target_": "bundle.workflow.check_overrides"},
            {"_target_": "builtins.dict", "d": "@dataset_dir", "o": "@output_dir", "w": "@weights", "s": "@scale"},
        ],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = [word for name, text in options.items() for word in (f"--{name}", text)]
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    retyped = {name: DefaultParseValue(text) for name, text in options.items()}
    retyped = {name: value for name, value in retyped.items() if value is not None}  # as monai.bundle run does
    workflow = ConfigWorkflow(str(tmp_path / "config.json"), logging_file=False, workflow_type=None, **retyped)
    workflow.initialize()
    found: dict[str, object] = workflow.run()[1]
    return found


@pytest.mark.parametrize("text", [*RETYPED, "plain", "None", "a b", "-1", "/x/a#b", "a::b", "x#y/z#w"])
def test_a_component_gets_the_name_that_was_typed(text: str, tmp_path: Path, monkeypatch) -> None:
    assert taken({"dataset_dir": text, "output_dir": text}, tmp_path, monkeypatch)["d"] == text
    assert taken({"output_dir": text}, tmp_path, monkeypatch)["o"] == text
    weights = taken({"weights": text}, tmp_path, monkeypatch)["w"]
    assert weights == (None if text == "None" else text)


@pytest.mark.parametrize("text", ["out#1", "001", "a,b"])
def test_a_name_in_two_pairs_of_quotes_is_what_the_quotes_hold(text: str, tmp_path: Path, monkeypatch) -> None:
    assert taken({"output_dir": f'"{text}"'}, tmp_path, monkeypatch)["o"] == text


def test_expressions_stay_expressions(tmp_path: Path, monkeypatch) -> None:
    found = taken({"dataset_dir": "$'a' + 'b'", "output_dir": "@dataset_dir"}, tmp_path, monkeypatch)
    assert found["d"] == found["o"] == "ab"


def test_numbers_stay_numbers_where_no_name_is_wanted(tmp_path: Path, monkeypatch) -> None:
    assert taken({"scale": "4"}, tmp_path, monkeypatch)["s"] == 4


@pytest.mark.parametrize("value", [100307, ("a", "b"), True, 1.5, {"a": 1}, b"x", {"x"}])
def test_what_cannot_be_known_is_one_line_with_the_option_its_value_and_how_to_quote_it(value: object) -> None:
    (line,) = wrong_values({"output_dir": value})
    assert line.startswith("--output_dir ") and repr(value) in line and "\n" not in line
    assert line.endswith("""--output_dir '"NAME"'""")


def test_an_empty_name_is_one_line() -> None:
    assert wrong_values({"output_dir": ""}) == ["--output_dir: is empty"]


@pytest.mark.parametrize("given_as", [["--output-dir", "001"], ["-output_dir", "001"], ["--output_dir=001"]])
def test_every_spelling_of_an_option_is_found(given_as: list[str]) -> None:
    assert typed_text("output_dir", ["run", "--output_dir", "x", *given_as, "--scale", "2"]) == "001"
    assert typed_text("output_dir", [*given_as, "--output_dir", "--scale", "2"]) is None


def test_a_choice_with_a_comment_is_not_taken_for_the_choice() -> None:
    assert names_as_typed({"split": "test"}, ["--split", "test#1"])["split"] == "test#1"


def in_a_config(text: str) -> object:
    """What MONAI makes of a text on its command line."""
    value = DefaultParseValue(text)
    return value.replace("#", "::") if isinstance(value, str) else value


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


@given(names | st.lists(st.sampled_from([*"a1,#()[]{}:'\"._-+ ", "None", "True", "1e5"]), max_size=8).map("".join))
@example("'a','b'")
@example('"a"#"b"')
def test_any_text_is_taken_as_it_was_typed_or_as_its_quotes_hold_it(text: str) -> None:
    quoted = json.dumps(text, ensure_ascii=False)
    meant = as_typed(in_a_config(text), text)
    assert meant == text or (text.strip()[-1] == text.strip().lstrip("rRuU")[0] and meant == DefaultParseValue(text))
    assert as_typed(in_a_config(quoted), quoted) == text  # what the message says to write
    assert shlex.split(shlex.quote(quoted)) == [quoted]


def test_a_value_that_comes_from_elsewhere_is_left_alone() -> None:
    assert as_typed(5, "6") == 5 and as_typed(True, "1") is True and as_typed(3, None) == 3


def test_folders_with_such_names_are_read_and_written(
    tmp_path: Path, write_nifti: Callable[..., Path], run_bundle: Callable
) -> None:
    write_nifti(tmp_path / "001" / "x.nii.gz", blob_volume((12, 10, 3), (5.5, 4.0, 1.0), sigma=3.0))
    done = run_bundle("inference", "inference.json", cwd=tmp_path, dataset_dir="001", output_dir="out#1")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["001", "out#1"]
    assert (tmp_path / "out#1" / "x_SRx2.nii.gz").is_file()
