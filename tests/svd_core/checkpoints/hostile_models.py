"""Hostile and broken model files and folders, each created at a path by a readable name."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

Make = Callable[[Path], None]


class Marker:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def framed(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with this header (an object, or raw bytes) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(start: int = 0, end: int = 8, dtype: object = "F32", shape: object = (2,)) -> dict[str, object]:
    """Return one tensor's description in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _content(content: bytes, size: int | None = None) -> Make:
    def make(path: Path) -> None:
        path.write_bytes(content)
        os.truncate(path, len(content) if size is None else size)

    return make


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Marker(path.with_name("marker"))))


def _many(count: int) -> dict[str, object]:
    return {f"t{number}": tensor(0, 0, shape=[0]) for number in range(count)}


def _metadata(text: bytes) -> bytes:
    return framed(b'{"__metadata__":{"a":"' + text + b'"},"x":' + json.dumps(tensor()).encode() + b"}", bytes(7))


def _svd_with(metadata: dict[str, object]) -> bytes:
    """Return a file with the tensors that an SVD's sizes are read from, and this metadata."""
    unet, vae, clip = "model.diffusion_model.", "first_stage_model.", "conditioner.embedders.0.open_clip.model.visual."
    described = {
        unet + "input_blocks.0.0.weight": (64, 8, 3, 3),
        unet + "label_emb.0.0.weight": (256, 768),
        unet + "out.2.bias": (4,),
        unet + "middle_block.1.time_stack.0.attn2.to_k.weight": (64, 32),
        unet + "middle_block.1.transformer_blocks.0.attn2.to_k.weight": (64, 32),
        **{f"{unet}input_blocks.{n}.0.out_layers.3.bias": (64,) for n in range(1, 73)},
        vae + "encoder.conv_in.weight": (32, 3, 3, 3),
        vae + "decoder.conv_in.weight": (32, 4, 3, 3),
        vae + "decoder.conv_out.bias": (3,),
        vae + "decoder.mid.block_1.time_stack.in_layers.0.weight": (32,),
        **{f"{vae}decoder.up.{n}.block.0.conv2.bias": (32,) for n in range(8)},
        clip + "class_embedding": (64,),
        clip + "conv1.weight": (64, 3, 32, 32),
        clip + "positional_embedding": (50, 64),
        clip + "proj": (64, 32),
        clip + "transformer.resblocks.0.mlp.c_fc.bias": (128,),
    }
    header: dict[str, object] = {"__metadata__": {"svd_stages": json.dumps(metadata)}}
    end = 0
    for name, shape in described.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = tensor(start, end, shape=shape)
    return framed(header, bytes(end))


def _socket(path: Path) -> None:
    before = os.getcwd()
    os.chdir(path.parent)  # a socket's path is limited to about 100 characters
    with socket.socket(socket.AF_UNIX) as unix_socket:
        unix_socket.bind(path.name)
    os.chdir(before)


def _link_to(target: str) -> Make:
    return lambda path: path.symlink_to(target)


DEEP = b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
FILES: dict[str, Make] = {
    # not a model file
    "nothing": lambda path: None,
    "empty": _content(b""),
    "seven bytes": _content(b"1234567"),
    "gigabytes of nothing": _content(b"", 2**40),
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a socket": _socket,
    "a link to a device without end": _link_to("/dev/zero"),
    "a link to a device that waits": _link_to("/dev/tty"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nowhere": _link_to("/nowhere/at/all"),
    "a png": _content(b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "a gzip": _content(b"\x1f\x8b\x08\x00" + bytes(100)),
    "a web page": _content(b"<!DOCTYPE html><html>"),
    "a git-lfs pointer": _content(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
    "a pickle": _pickled,
    # inconsistent headers
    "a header of 2^63 bytes": _content(framed(b"{}", length=2**63)),
    "a header longer than the file": _content(framed({"x": tensor()}, bytes(8), length=10_000)),
    "no json": _content(framed(b"{nonsense}")),
    "a leading space": _content(framed(b" {}")),
    "json of a list": _content(framed(b"[1, 2]")),
    "no utf-8": _content(framed(b'{"\xff\xfe": 1}')),
    "a byte order mark": _content(framed(b"\xef\xbb\xbf{}")),
    "no data": _content(framed({"x": tensor()})),
    "data cut short": _content(framed({"x": tensor()}, bytes(7))),
    "trailing bytes": _content(framed({"x": tensor()}, bytes(9))),
    "tensors that overlap": _content(framed({"x": tensor(0, 8), "y": tensor(4, 12)}, bytes(12))),
    "a hole": _content(framed({"x": tensor(0, 8), "y": tensor(12, 20)}, bytes(20))),
    "a hole at the start": _content(framed({"x": tensor(4, 12)}, bytes(12))),
    "offsets of text": _content(framed({"x": {**tensor(), "data_offsets": ["0", "8"]}}, bytes(8))),
    "three offsets": _content(framed({"x": {**tensor(), "data_offsets": [0, 4, 8]}}, bytes(8))),
    "offsets that go back": _content(framed({"x": tensor(8, 0)}, bytes(8))),
    "negative offsets": _content(framed({"x": tensor(-8, 0)}, bytes(8))),
    "offsets of NaN": _content(framed(b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[NaN,8]}}', bytes(8))),
    "offsets of infinity": _content(framed(b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,1e999]}}', bytes(8))),
    "a shape of another size": _content(framed({"x": tensor(shape=[3])}, bytes(8))),
    "a shape that overflows": _content(framed({"x": tensor(shape=[2**62, 2**62])}, bytes(8))),
    "a negative shape": _content(framed({"x": tensor(shape=[-1, -2])}, bytes(8))),
    "true in a shape": _content(framed({"x": tensor(shape=[True, 2])}, bytes(8))),
    "a number for a dtype": _content(framed({"x": tensor(dtype=32)}, bytes(8))),
    "a number for a tensor": _content(framed({"x": 1})),
    "rank 9": _content(framed({"x": tensor(shape=[1] * 8 + [2])}, bytes(8))),
    "a name twice": _content(framed(b'{"x":%b,"x":%b}' % ((json.dumps(tensor()).encode(),) * 2), bytes(8))),
    "a key twice": _content(framed(b'{"x":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}', bytes(8))),
    "metadata of a list": _content(framed({"__metadata__": ["a"]})),
    "metadata of numbers": _content(framed({"__metadata__": {"a": 1}})),
    "metadata of metadata": _content(framed({"__metadata__": {"a": {"b": "c"}}})),
    # expensive headers
    "a header of 90 MB": _content(framed(b"{", length=90_000_000), 90_000_008),
    "deep lists": _content(framed(DEEP)),
    "deep tables": _content(framed(b'{"x":' * 200_000)),
    "a million empty lists": _content(framed(b'{"x":[' + b"[]," * 1_300_000 + b"0]}")),
    "a million empty tables": _content(framed(b'{"x":[' + b"{}," * 1_300_000 + b"0]}")),
    "a million texts": _content(framed(b'{"x":[' + b'"",' * 1_300_000 + b"0]}")),
    "a million quotes that do not end": _content(framed(b'{"x":"' + b'\\"' * 1_900_000)),
    "a shape of a million": _content(framed(b'{"x":{"dtype":"F32","shape":[' + b"1," * 1_900_000 + b"1]}}")),
    "a number of a million digits": _content(framed(b'{"x":' + b"9" * 3_900_000 + b"}")),
    "a fraction of a million digits": _content(framed(b'{"x":0.' + b"9" * 3_900_000 + b"}")),
    "too many tensors": _content(framed(_many(10_001))),
    "10,000 tensors of nothing": _content(framed(_many(10_000))),
    "wide letters of metadata": _content(_metadata("\U0001f600".encode() * 900_000)),
    "a name of 3 MB": _content(framed({"n" * 3_000_000: tensor(shape=[3])}, bytes(8))),
    # expensive metadata of an SVD
    "metadata of deep lists": _content(framed({"__metadata__": {"svd_stages": '{"a":' + "[" * 99_999}})),
    "an SVD of more layers than tensors": _content(
        _svd_with({"unet_attention": [True] * 8, "unet_layers": 8, "unet_transformers": 16, "vae_levels": 8})
    ),
    "an SVD with a CLIP encoder of more layers than tensors": _content(_svd_with({"clip_heads": 1, "clip_layers": 64})),
}
"""Name -> function that creates the file at a path in a folder of its own."""


def _config(part: str, **changes: object) -> Make:
    def make(folder: Path) -> None:
        file = folder / part
        settings = json.loads(file.read_text())
        file.unlink()
        file.write_text(json.dumps({**settings, **changes}))  # a new file: the old one may be a hard link

    return make


def _replaced(part: str, make: Make) -> Make:
    def change(folder: Path) -> None:
        (folder / part).unlink()
        make(folder / part)

    return change


def _shards_that_leave(folder: Path) -> None:
    shutil.move(folder / WEIGHTS, folder.parent / "outside.safetensors")
    index = {"weight_map": {"conv_in.weight": "../../outside.safetensors", "x": "/etc/passwd"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def _pickled_component(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    _pickled((folder / WEIGHTS).with_suffix(".bin"))


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
UNET, CLIP, VAE = "unet/config.json", "image_encoder/config.json", "vae/config.json"
FOLDERS: dict[str, Make] = {
    "an index that names another class": _config("model_index.json", _class_name="os.system"),
    "an index whose part is any class": _config("model_index.json", unet=["subprocess", "Popen"]),
    "an index that is a pipe": _replaced("model_index.json", os.mkfifo),
    "a config that is a pipe": _replaced(UNET, os.mkfifo),
    "a config that is a device": _replaced(UNET, _link_to("/dev/zero")),
    "a config that is a folder": _replaced(UNET, Path.mkdir),
    "a config of 0 bytes": _replaced(UNET, _content(b"")),
    "a config of gigabytes": _replaced(UNET, _content(b"{", 2**40)),
    "a config of lists": _replaced(UNET, _content(b'{"x":[' + b"[]," * 300_000 + b"0]}")),
    "a config of deep lists": _replaced(UNET, _content(DEEP)),
    "a config that is another's secret": _replaced(UNET, _link_to("/etc/passwd")),
    "a config of NaN": _replaced(VAE, _content(b'{"scaling_factor": NaN}')),
    "a config of words for numbers": _config(UNET, in_channels="8"),
    "a config of a billion layers": _config(UNET, layers_per_block=10**9),
    "a config of a billion transformers": _config(UNET, transformer_layers_per_block=10**9),
    "a config of 20,000 levels": _config(UNET, block_out_channels=[64] * 20_000, num_attention_heads=1),
    "a config of lists of lists": _config(UNET, transformer_layers_per_block=[[1], [1], [1], [1]]),
    "a config of more layers than tensors": _config(
        UNET,
        layers_per_block=8,
        transformer_layers_per_block=16,
        down_block_types=["CrossAttnDownBlockSpatioTemporal"] * 4,
    ),
    "a config of no width": _config(UNET, block_out_channels=[]),
    "a CLIP encoder of a billion layers": _config(CLIP, num_hidden_layers=10**9),
    "a CLIP encoder with code of its own": _config(CLIP, auto_map={"AutoModel": "evil--x.Y"}, hidden_act="__import__"),
    "a VAE of a billion layers": _config(VAE, layers_per_block=10**9),
    "a VAE of any block": _config(VAE, down_block_types=["Popen"] * 4),
    "weights that are a pipe": _replaced(WEIGHTS, os.mkfifo),
    "weights that are a device": _replaced("vae/diffusion_pytorch_model.safetensors", _link_to("/dev/zero")),
    "weights that are a pickle by content": _replaced(WEIGHTS, _pickled),
    "weights in a pickle": _pickled_component,
    "shards that lie outside": _shards_that_leave,
    "a scheduler config that is a pipe": _replaced("scheduler/scheduler_config.json", os.mkfifo),
    "a sigma beyond its range": _config("scheduler/scheduler_config.json", sigma_max=1e30),
}
"""Name -> function that changes a valid diffusers folder."""
