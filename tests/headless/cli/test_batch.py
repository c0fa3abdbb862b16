"""`batch run` and `batch plan` take the settings of `animate`."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from svd_stages import headless
from svd_stages.headless.cli.main import main, make_parser

COMMANDS = ("animate", "batch run", "batch plan")
ROCKET = headless.PACKAGE / "example_workflows" / "rocket.png"
NO_SETTING_OF_ROWS = ("model", "seed")
"""Settings that are other options of a batch: --model of the run, and --seeds of the rows."""


def test_every_setting_of_animate_is_the_same_option_of_batch_run_and_batch_plan():
    animate, *others = (make_parser().commands()[name] for name in COMMANDS)
    names = [each.name for each in fields(headless.VideoSettings) if animate.flag(each.name)]
    assert len(names) > 12
    for name in set(names) - set(NO_SETTING_OF_ROWS):
        expected = option(animate, name)
        assert [option(each, name) for each in others] == [expected, expected]


def option(parser: Any, name: str) -> dict[str, Any]:
    """Return the flags, the type and the help of an option, without its default."""
    (action,) = (each for each in parser._actions if each.dest == name)
    known = {key: getattr(action, key) for key in ("option_strings", "type", "choices", "metavar", "nargs")}
    return {**known, "help": action.help.partition(" (default: ")[0]}


@pytest.mark.parametrize(
    "setting",
    [
        "--steps 0", "--steps many", "--steps 2.5", "--width 100", "--height 1000000", "--fit streched", "--frames 0",
        "--fps 0", "--motion-bucket-id 1024", "--noise-aug-strength -1", "--min-guidance x", "--max-guidance nan",
        "--decode-mode windowd", "--decode-chunk 0", "--decode-context -1", "--compile on", "--sigmas 1,2",
        "--sigmas karras",
    ],
)  # fmt: skip
def test_an_invalid_value_gets_the_same_error_from_each_command(setting, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    errors = []
    for command in COMMANDS:
        rest = [] if command == "animate" else ["--run", "run"]
        source = str(ROCKET if command == "animate" else ROCKET.parent)
        assert main([*command.split(), source, *rest, *setting.split(), "--json"]) == 2
        errors.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert errors[0] == errors[1] == errors[2]
    assert setting.split()[0] in errors[0]["message"] and len(errors[0]["message"]) <= 200
