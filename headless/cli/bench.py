"""The command `svd-stages bench`."""

from __future__ import annotations

import argparse
import datetime
import logging
import shlex
import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...svd_core.errors import UsageError, closest, printable
from ...svd_core.runtime.runtime import LocalRuntime
from .console import Console
from .options import add_command, add_threads, set_threads
from .parser import count

logger = logging.getLogger(__name__)

PARTS = ("counted", "step", "cache", "decode", "video")
TURNS = 7
BUSY_PERCENT = 10
CARD_FILE = "svd-stages-card.jsonl"
LARGE_BYTES = 40 * 2**30
"""Memory of a card that is probably one of a data centre."""
MINUTES_LARGE, MINUTES, MINUTES_CPU = 8, 30, 10
STATES = ("ok", "failed", "error", "skipped")


def add_bench(commands: Any) -> None:
    """Add `svd-stages bench`."""
    text = "measure this package against stock diffusers on this machine; Ctrl-C keeps the rows that are printed"
    parser = add_command(commands, "bench", bench, text, ["device", "precision", "quiet"])
    parser.add_argument(
        "--size", choices=("small", "full"),
        help="of the random models: small suits a CPU, full is SVD-XT at 1024x576 (default: full on CUDA, else small)",
    )  # fmt: skip
    parser.add_argument(
        "--only", type=_split, action="extend", metavar="PART", help="counted, step, cache, "
        "decode or video, with --card or --table a group of rows; repeatable, or a list with commas (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--turns", type=count, metavar="N", help="time each variant at most so often; fewer where the "
        f"ratios of 3 turns agree (default: {TURNS}; with --card on a CPU 1)",
    )  # fmt: skip
    parser.add_argument("--compiled", action="store_true", help="measure whole steps through torch.compile, too")
    add_threads(parser)
    card = parser.add_argument_group("a card")
    card.add_argument(
        "--card", action="store_true", help="measure everything about this card, and append each row to a file as soon "
        "as it is measured",
    )  # fmt: skip
    card.add_argument(
        "-o", "--output", type=Path, metavar="FILE.jsonl", help=f"with --card: the file (default: {CARD_FILE})"
    )
    card.add_argument(
        "--minutes", type=count, metavar="N", help="with --card: skip the rows that would begin later (default: "
        f"{MINUTES_LARGE} on a card with more than {LARGE_BYTES // 2**30} GiB, else {MINUTES}; {MINUTES_CPU} on a CPU)",
    )  # fmt: skip
    card.add_argument(
        "--table", type=Path, metavar="FILE.jsonl", help="print the tables of a file of --card; measure nothing"
    )


def _split(text: str) -> list[str]:
    return text.split(",")


def _check_parts(parts: list[str] | None, known: Collection[str]) -> Collection[str]:
    """Return the parts to measure.

    Raises:
        UsageError: One is not known.
    """
    for part in parts or ():
        if part not in known:
            near = closest(part, known)
            fix = f'; did you mean "{near}"?' if near else ""
            raise UsageError(f'--only must be one of {", ".join(known)}, got "{printable(part, 60)}"{fix}')
    return parts or known


def bench(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages bench`. Each row is printed when it is known."""
    if arguments.table is not None:
        _print_table(arguments, console)
    elif arguments.card:
        _bench_card(arguments, console)
    else:
        _compare(arguments, console)


def _print_table(arguments: argparse.Namespace, console: Console) -> None:
    from ..bench.card import GROUPS
    from ..bench.card_table import format_file, read_rows

    text = format_file(arguments.table, _check_parts(arguments.only, GROUPS))
    last, rows = read_rows(arguments.table)
    console.result(text, run=last, rows=list(rows.values()))


def _bench_card(arguments: argparse.Namespace, console: Console) -> None:
    from ..bench import report
    from ..bench.card import GROUPS, CardBench, RowFile, measure_card
    from ..bench.card_models import Card
    from ..bench.card_table import RUN, table_header, table_line

    began = time.monotonic()
    groups = _check_parts(arguments.only, GROUPS)
    runtime, device, dtype, size = _settings(arguments, console)
    turns = arguments.turns or (1 if device.type == "cpu" else TURNS)
    path: Path = arguments.output or Path(CARD_FILE)
    file = RowFile(path)
    facts = report.machine(device, dtype, size, turns)
    _announce_machine(facts, console)
    command = {"command": "svd-stages " + shlex.join(_command_line(arguments)), "time": _now()}
    file.add({"group": RUN, "row": "settings", **facts, **command})
    card = Card(device, dtype, size, turns)
    minutes = arguments.minutes or _minutes(device)
    counts, title = dict.fromkeys(STATES, 0), ""
    for row in measure_card(CardBench(card, groups, 60 * minutes, runtime.progress)):
        file.add(row)
        counts[row["status"]] += 1
        lines = [] if row["group"] == title else [table_header(row["group"])]
        title = row["group"]
        console.part("card", "\n".join([*lines, table_line(row), *filter(None, [row.get("text")])]), **row)
    words = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    seconds = time.monotonic() - began
    console.result(f"\n{words}; {seconds:.0f} s in all; wrote {path}", file=str(path), seconds=seconds, **counts)


def _minutes(device: Any) -> int:
    """Return the default of --minutes."""
    import torch

    if device.type != "cuda":
        return MINUTES_CPU
    return MINUTES_LARGE if torch.cuda.get_device_properties(device).total_memory > LARGE_BYTES else MINUTES


def _command_line(arguments: argparse.Namespace) -> list[str]:
    """Return the command with the options that change what is measured."""
    given = {name: getattr(arguments, name) for name in ("size", "device", "precision", "turns", "own_threads")}
    options = [["--" + name.removeprefix("own_"), str(value)] for name, value in given.items() if value is not None]
    only = [["--only", ",".join(arguments.only)]] if arguments.only else []
    return ["bench", "--card", *(word for option in (*options, *only) for word in option)]


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _settings(arguments: argparse.Namespace, console: Console) -> tuple[LocalRuntime, Any, Any, str]:
    """Return the runtime, the device, the dtype of the weights and the size."""
    import torch

    from ...svd_core.checkpoints.load import resolve_dtypes

    set_threads(arguments)
    runtime = LocalRuntime(device_name=arguments.device, reporter=console.report)
    device = runtime.device()
    dtype = resolve_dtypes(arguments.precision, device, torch.float32, force_upcast=False).compute
    return runtime, device, dtype, arguments.size or ("full" if device.type == "cuda" else "small")


def _announce_machine(facts: dict[str, Any], console: Console) -> None:
    console.part("machine", ", ".join(f"{name} {value}" for name, value in facts.items()), **facts)
    if facts["busy_percent"] > BUSY_PERCENT:
        logger.warning("The machine is busy: other programs use %.0f %% of its CPUs.", facts["busy_percent"])


def _compare(arguments: argparse.Namespace, console: Console) -> None:
    from ..bench import compare, report

    began = time.monotonic()
    parts = _check_parts(arguments.only, PARTS)
    runtime, device, dtype, size = _settings(arguments, console)
    turns = arguments.turns or TURNS
    planned = compare.Bench(size, device, dtype, turns, arguments.compiled, parts, runtime.progress)
    facts = report.machine(device, dtype, size, turns)
    _announce_machine(facts, console)
    results: dict[str, Any] = {"machine": facts, "measured": {}, "counted": {}}
    tables: Any = (
        ("counted", report.COUNTED, report.counted_row, compare.count_full_size(planned)),
        ("measured", report.MEASURED, report.measured_row, compare.compare(planned)),
    )
    for kind, columns, row, comparisons in tables:
        title = report.header(columns) + "\n"
        for comparison, variants in comparisons:
            results[kind][comparison] = {variant: asdict(result) for variant, result in variants.items()}
            for variant, result in variants.items():
                text = title + row(comparison, variant, result)
                console.part(kind, text, comparison=comparison, variant=variant, **asdict(result))
                title = ""
    text = "" if console.is_quiet else f"\n{time.monotonic() - began:.0f} s in all"
    console.result(text, **results)
