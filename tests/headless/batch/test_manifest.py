"""Manifests: equal rows in each format, and hostile content."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from error_checks import raises
from svd_stages.headless.batch.manifest import HIGHEST_SEED, LONGEST_ROW, parse_seeds, read_rows
from svd_stages.svd_core.errors import BatchError

TABLE = [
    {"image": "a.png", "seed": 7, "name": "first", "Micro.fps": 12},
    {"image": "sub/b c.png", "seed": None, "name": None, "Micro.fps": None},
    {"image": 'ä, "quoted".png', "seed": HIGHEST_SEED, "name": "x", "Micro.fps": 9},
]


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_csv(table: list[dict]) -> str:
    def cell(value: object) -> str:
        text = "" if value is None else str(value)
        return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\n') else text

    lines = [",".join(table[0]), *(",".join(cell(value) for value in row.values()) for row in table)]
    return "\n".join(lines) + "\n"


def as_text(rows) -> list[tuple]:
    """Return the fields of rows, with values as text, because a cell of CSV has no type."""
    return [(r.image, r.seed, r.name, {key: str(value) for key, value in r.values.items()}, r.fault) for r in rows]


def code_of(path: Path) -> str:
    with pytest.raises(BatchError) as caught:
        list(read_rows(path))
    assert str(path) in str(caught.value)
    return caught.value.code


def fault_of(path: Path) -> str:
    """Return the code of the one faulty row, the second of three."""
    rows = list(read_rows(path))
    assert [row.fault is None for row in rows] == [True, False, True]
    assert rows[1].fault is not None and len(rows[1].fault[1]) < 1000
    return rows[1].fault[0]


def between(path: Path, line: str) -> Path:
    good = json.dumps({"image": "a.png"})
    return write(path, f"{good}\n{line}\n{good}\n")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "ndjson", "parquet"])
def test_a_table_has_the_same_rows_in_each_format(tmp_path, suffix):
    path = tmp_path / f"m.{suffix}"
    if suffix == "parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        columns = {name: [row[name] for row in TABLE] for name in TABLE[0]}
        columns["seed"] = arrow.array(columns["seed"], arrow.uint64())
        parquet.write_table(arrow.table(columns), path)
    else:
        write(path, as_csv(TABLE) if suffix == "csv" else "".join(json.dumps(row) + "\n" for row in TABLE))
    micro = [{"Micro.fps": "12"}, {}, {"Micro.fps": "9"}]
    expected = [(row["image"], row["seed"], row["name"], micro[number], None) for number, row in enumerate(TABLE)]
    assert as_text(read_rows(path)) == expected


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_byte_order_mark_and_windows_line_ends_are_ignored(tmp_path, suffix):
    text = as_csv(TABLE) if suffix == "csv" else "".join(json.dumps(row) + "\n" for row in TABLE)
    plain = list(read_rows(write(tmp_path / f"a.{suffix}", text)))
    windows = "\ufeff" + text.replace("\n", "\r\n") + "\r\n"
    assert list(read_rows(write(tmp_path / f"b.{suffix}", windows))) == plain


def test_empty_lines_are_skipped_and_rows_have_line_numbers(tmp_path):
    rows = list(read_rows(write(tmp_path / "m.csv", "image\n\na.png\n \n,\nb.png\n")))
    assert [(row.number, row.image) for row in rows if row.fault is None] == [(3, "a.png"), (6, "b.png")]
    rows = list(read_rows(write(tmp_path / "m.jsonl", '\n{"image": "a.png"}\n\n{"image": "b.png"}')))
    assert [(row.number, row.image) for row in rows] == [(2, "a.png"), (4, "b.png")]


def test_a_line_with_a_wrong_number_of_cells_is_a_faulty_row(tmp_path):
    for line in ("b.png", "b.png,1,2"):
        assert fault_of(write(tmp_path / "m.csv", f"image,seed\na.png,1\n{line}\nc.png,3\n")) == "manifest.row"


@pytest.mark.parametrize("seed", ["-1", "1.5", "x", "1e3", "٣", str(2**64), "9" * 5000, "0x10", "1_0"])
def test_a_cell_with_an_invalid_seed_is_a_faulty_row(tmp_path, seed):
    assert fault_of(write(tmp_path / "m.csv", f"image,seed\na.png,1\nb.png,{seed}\nc.png,3\n")) == "manifest.seed"


@pytest.mark.parametrize("seed", ["-1", "1.5", "true", "[]", "[1]", "{}", '{"a": 1}', '""', '"x"', str(2**64), "1e300"])
def test_a_json_value_with_an_invalid_seed_is_a_faulty_row(tmp_path, seed):
    assert fault_of(between(tmp_path / "m.jsonl", f'{{"image": "b.png", "seed": {seed}}}')) == "manifest.seed"


@pytest.mark.parametrize("seed", ["0", "7", "7.0", '"7"', str(HIGHEST_SEED)])
def test_a_seed_may_be_a_number_or_text(tmp_path, seed):
    (row,) = read_rows(write(tmp_path / "m.jsonl", f'{{"image": "b.png", "seed": {seed}}}'))
    assert row.seed == int(float(seed.strip('"'))) or row.seed == HIGHEST_SEED


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('{"image": "b.png", "image": "c.png"}', "manifest.duplicate_key"),
        ('{"image": "b.png", "A.x": NaN}', "manifest.non_finite"),
        ('{"image": "b.png", "A.x": 1e999}', "manifest.non_finite"),
        ('{"image": "b.png", "A.x": ' + "[" * 200 + "]" * 200 + "}", "manifest.too_large"),
        ("[" * 100_000, "manifest.too_large"),
        ('{"image": "\\ud800.png"}', "manifest.encoding"),
        ('["b.png"]', "manifest.shape"),
        ("null", "manifest.shape"),
        ("b.png", "manifest.json"),
        ('{"image": "b.png"', "manifest.json"),
        ('{"image": "b.png"} {}', "manifest.json"),
        ('{"image": "b.png", "A.x": ' + "9" * 5000 + "}", "manifest.json"),
        ('{"image": ""}', "manifest.image"),
        ('{"image": null}', "manifest.image"),
        ('{"image": ["b.png"]}', "manifest.image"),
        ('{"image": 5}', "manifest.image"),
        ('{"seed": 3}', "manifest.image"),
    ],
)
def test_a_hostile_line_is_a_faulty_row_and_the_others_are_read(tmp_path, line, code):
    assert fault_of(between(tmp_path / "m.jsonl", line)) == code


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("m.csv", b"image\na.png\n\xff\xfe.png\n", "manifest.encoding"),
        ("m.jsonl", b'{"image": "a.png"}\n{"image": "\xff"}\n', "manifest.encoding"),
        ("m.csv", "image\na.png\n".encode("utf-16"), "manifest.encoding"),
        ("m.csv", b"image\na\0.png\n", "manifest.encoding"),
        ("m.jsonl", b'{"image": "a.png"}\n\0\0\0\n', "manifest.encoding"),
        ("m.csv", b"image\n" + b"x" * 10_000_000 + b"\n", "manifest.too_large"),
        ("m.jsonl", b'{"image": "' + b"x" * 10_000_000 + b'"}\n', "manifest.too_large"),
        ("m.csv", b'image\n"' + b"x" * 500_000 + b'"\n', "manifest.csv"),
        ("m.csv", b'image\n"' + b"x\n" * 200_000 + b'"\n', "manifest.csv"),
        ("m.csv", b'image\n"a.png"b\n', "manifest.csv"),
        ("m.csv", b'image\n"a.png\n', "manifest.csv"),
        ("m.csv", b"", "manifest.columns"),
        ("m.csv", b"a.png\nb.png\n", "manifest.columns"),
        ("m.csv", b"image,fps\na.png,7\n", "manifest.columns"),
        ("m.csv", b"image,seed,seed\na.png,7,8\n", "manifest.columns"),
        ("m.csv", b"image,\na.png,\n", "manifest.columns"),
        ("m.jsonl", b'{"image": "a.png", "fps": 7}\n', "manifest.columns"),
        ("m.csv", b"image\n", "manifest.empty"),
        ("m.jsonl", b"\n\n", "manifest.empty"),
        ("m.txt", b"image\na.png\n", "manifest.format"),
    ],
)
def test_a_file_that_is_not_a_manifest_is_refused(tmp_path, name, content, code):
    assert code_of(write(tmp_path / name, content)) == code


def test_a_missing_manifest_and_a_folder_without_images_are_refused(tmp_path):
    assert code_of(tmp_path / "m.csv") == code_of(tmp_path / "m.jsonl") == "manifest.file"
    assert code_of(tmp_path / "photos") == "manifest.format"
    (tmp_path / "notes.txt").touch()
    assert code_of(tmp_path) == "manifest.empty"


def test_a_line_of_the_longest_length_is_read(tmp_path):
    head, tail = '{"image": "', '"}'
    name = "x" * (LONGEST_ROW - len(head) - len(tail) - 1)
    (row,) = read_rows(write(tmp_path / "m.jsonl", f"{head}{name}{tail}\n"))
    assert row.image == name


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", b"image\na.png\n"])
def test_a_file_that_is_not_parquet_is_refused(tmp_path, content):
    pytest.importorskip("pyarrow")
    assert code_of(write(tmp_path / "m.parquet", content)) == "manifest.parquet"


def test_damaged_parquet_is_refused_or_has_rows(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"image": [f"{number}.png" for number in range(50)]}), tmp_path / "whole.parquet")
    content, rng = (tmp_path / "whole.parquet").read_bytes(), random.Random(5)
    for _ in range(60):
        damaged = bytearray(content[: rng.randrange(len(content))] if rng.random() < 0.3 else content)
        for _ in range(8):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            rows = list(read_rows(write(tmp_path / "m.parquet", bytes(damaged))))
        except BatchError:
            continue
        assert rows


def test_types_that_only_parquet_has_are_faulty_rows(tmp_path):
    import datetime
    import decimal

    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for strange in (datetime.datetime(2024, 1, 1), decimal.Decimal("1.5"), b"\xff", datetime.timedelta(1)):
        parquet.write_table(
            arrow.table({"image": ["a", "b", "c"], "A.x": [None, strange, None]}), tmp_path / "m.parquet"
        )
        assert fault_of(tmp_path / "m.parquet") == "manifest.value"
    for seed in (float("inf"), float("nan"), 1.5, -1.0):
        parquet.write_table(arrow.table({"image": ["a", "b", "c"], "seed": [None, seed, 7.0]}), tmp_path / "m.parquet")
        assert fault_of(tmp_path / "m.parquet") == "manifest.seed"


def test_a_folder_has_its_images_sorted_without_hidden_and_linked_ones_and_results(tmp_path):
    photos = tmp_path / "photos"
    for name in ("b/2.JPG", "b/10.png", "a.webp", ".hidden.png", ".git/x.png", "notes.txt", "c.png.part"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").touch()
    (photos / "link").symlink_to(tmp_path / "elsewhere")
    (photos / "round").symlink_to(photos)
    (photos / "run" / "drivers").mkdir(parents=True)  # a run folder, whose images are results
    for name in ("run.json", "contact_sheet.jpg"):
        (photos / "run" / name).touch()
    rows = list(read_rows(photos))
    assert [row.image for row in rows] == ["a.webp", "b/10.png", "b/2.JPG"]
    assert [row.number for row in rows] == [1, 2, 3]


def test_an_unreadable_subfolder_is_an_error(tmp_path, monkeypatch):
    import os

    (tmp_path / "a.png").touch()
    (tmp_path / "secret").mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert code_of(tmp_path) == "manifest.file"


def test_a_row_without_a_seed_is_repeated_with_each_seed(tmp_path):
    rows = read_rows(write(tmp_path / "m.csv", "image,seed\na.png,\nb.png,5\nc.png,x\n"), [1, 2])
    assert [(row.image, row.seed) for row in rows] == [("a.png", 1), ("a.png", 2), ("b.png", 5), ("c.png", None)]


def test_seeds_are_lists_and_ranges_without_duplicates():
    assert parse_seeds("7") == [7]
    assert parse_seeds("0,5,9") == [0, 5, 9]
    assert parse_seeds("1-3, 10, 2 - 4") == [1, 2, 3, 10, 4]
    assert parse_seeds(str(HIGHEST_SEED)) == [HIGHEST_SEED]


@pytest.mark.parametrize(
    "text", ["", ",", "1,", "-1", "3-1", "a", "1.5", "0-99999999", str(2**64), "٣", "1" * 5000, "1-"]
)
def test_an_invalid_list_of_seeds_is_refused(text):
    with raises(BatchError, "manifest.seed"):
        parse_seeds(text)
