"""Progress: the estimate over all stages, the bar in a terminal, and the lines in a log."""

from __future__ import annotations

import io
import itertools
import logging
import re

import pytest
from svd_stages.headless.cli import progress
from svd_stages.headless.cli.console import ConsoleLog, TerminalConsole
from svd_stages.headless.cli.progress import Display, Forecast

STAGES = ("loading", "embedding", "encoding", "sampling", "decoding")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use_stderr(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> io.StringIO:
    """Print on a stream in place of stderr. Called in the test, because pytest sets stderr after the fixtures."""
    monkeypatch.setattr("sys.stderr", stream)
    return stream


@pytest.mark.parametrize("steps", [progress.STEPS, 4])
def test_the_share_never_falls_and_is_right_when_the_speed_of_the_stages_is_typical(steps):
    clock = Clock()
    forecast = Forecast(STAGES, clock)
    times = {**{name: progress.WEIGHTS[name] for name in STAGES}, "sampling": steps * progress.WEIGHTS["sampling"]}
    total, shares = sum(times.values()), []
    for stage in STAGES:
        forecast.begin(stage, steps)
        for step in range(1, 11):
            clock.now += times[stage] / 10
            forecast.advance(step / 10)
            share, left = forecast.estimate()
            if steps == progress.STEPS or stage in ("sampling", "decoding"):  # the steps are not known before
                assert share == pytest.approx(clock.now / total) and left == pytest.approx(total - clock.now)
            shares.append(share)
    assert shares == sorted(shares) and shares[-1] == 1


def test_a_stage_that_is_slower_than_is_typical_corrects_the_time_of_the_others():
    clock = Clock()
    forecast = Forecast(("sampling", "decoding"), clock)
    forecast.begin("sampling", 10)
    clock.now = 300.0
    forecast.advance(0.5)
    assert forecast.estimate() == (pytest.approx(300 / 840), pytest.approx(540))  # 300 + 4 / 10 * 600


@pytest.mark.parametrize("stages", [("sampling", "hashing"), ("decoding", "sampling", "sampling"), ()])
def test_stages_that_were_not_expected_and_those_that_do_not_come_break_nothing(stages):
    clock = Clock()
    forecast = Forecast(STAGES, clock)
    for stage, step in itertools.product(stages, range(4)):
        if step == 0:
            forecast.begin(stage, 3)
        clock.now += 1
        forecast.advance(step / 3)
        share, left = forecast.estimate()
        assert 0 <= share <= 1 and (left is None or left >= 0)
    assert 0 <= forecast.estimate()[0] < 1


def run_stages(console: TerminalConsole) -> None:
    console.expect(STAGES)
    for stage in STAGES:
        for done in range(4):
            console.report(stage, done, 3, "step")


def test_a_terminal_gets_one_bar_of_all_stages(monkeypatch):
    terminal = use_stderr(monkeypatch, Terminal())
    console = TerminalConsole()
    run_stages(console)
    console.result("wrote a.mp4")
    (text, rest) = terminal.getvalue().split("\n")
    lines = [line for line in text.split("\r") if line.strip()]
    assert rest == "" and {line.split()[0] for line in lines} == {*STAGES, "done"}
    shares = [int(re.search(r"(\d+)%", line)[1]) for line in lines]
    assert shares == sorted(shares) and shares[-1] == 100


@pytest.mark.parametrize("columns", [0, 3, 20, 60, 1000])
def test_a_bar_is_never_blank_and_never_wider_than_the_terminal(monkeypatch, columns):
    terminal = use_stderr(monkeypatch, Terminal())
    monkeypatch.setattr(terminal, "fileno", lambda: 2)
    monkeypatch.setattr(progress.os, "get_terminal_size", lambda number: progress.os.terminal_size((columns, 0)))
    run_stages(TerminalConsole())
    lines = [line for line in terminal.getvalue().split("\r") if line.strip()]
    assert lines and max(map(len, lines)) < (columns or 80)


def test_a_log_gets_a_line_for_each_stage_and_for_each_ten_seconds(monkeypatch):
    log = use_stderr(monkeypatch, io.StringIO())
    clock = Clock()
    display = Display(clock)
    display.expect(STAGES)
    for done in range(26):
        display.report("sampling", done, 25, "step")
        clock.now += 1
    display.report("decoding", 0, 14, "frame")
    display.report("decoding", 14, 14, "frame")
    lines = log.getvalue().splitlines()
    assert [re.findall(r"\d+", line)[:2] for line in lines[:2]] == [["10", "25"], ["20", "25"]]
    assert [line.split(":")[0] for line in lines] == ["sampling", "sampling", "sampling", "decoding"]
    assert "left" in lines[0] and re.search(r"\d:\d\d", lines[0])
    assert "\r" not in log.getvalue()


def test_a_quiet_console_shows_no_progress(monkeypatch):
    log = use_stderr(monkeypatch, io.StringIO())
    run_stages(TerminalConsole(quiet=True))
    assert log.getvalue() == ""


def test_a_notice_is_printed_once_wrapped_and_above_the_bar(monkeypatch):
    terminal = use_stderr(monkeypatch, Terminal())
    console = TerminalConsole()
    handler = ConsoleLog(console, lambda text: text.replace("`models`", "--models"))
    console.report("sampling", 0, 3, "step")
    for _ in range(2):
        handler.emit(logging.makeLogRecord({"msg": "give a folder with `models` " + "or a name " * 20}))
    console.close()
    lines = [line.rpartition("\r")[2] for line in terminal.getvalue().split("\n")]
    notice = [line for line in lines if "sampling" not in line]
    assert " ".join(notice).count("--models") == 1
    assert len(notice) > 2 and max(map(len, lines)) < 80
    assert lines[-2].startswith("sampling")
