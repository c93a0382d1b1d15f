"""Damage to files: safetensors, JSON, JSON lines and text."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from damage_json import VALUES, damage_text, damage_value, dump
from safetensors.torch import load_file, save_file


def damage(rng: Random, path: Path) -> str:
    """Damage a file in a way that fits its suffix; return a description of the damage."""
    if rng.random() < 0.05:
        return _replace(rng, path)
    match path.suffix:
        case ".safetensors":
            return _damage_safetensors(rng, path)
        case ".json" | ".jsonl" if rng.random() < 0.8:
            how = _damage_json if path.suffix == ".json" else _damage_lines
            return how(rng, path)
    content, what = damage_text(rng, path.read_bytes())
    path.write_bytes(content)
    return what


def _replace(rng: Random, path: Path) -> str:
    path.unlink()
    match rng.randrange(4):
        case 0:
            return "removed"
        case 1:
            path.mkdir()
            return "a directory"
        case 2:
            path.symlink_to(path.name)
            return "a link to itself"
    path.touch()
    return "empty"


def _damage_json(rng: Random, path: Path) -> str:
    document, whats = json.loads(path.read_bytes()), []
    for _ in range(rng.choice([1, 1, 1, 2])):
        document, what = damage_value(rng, document)
        whats.append(what)
    path.write_bytes(dump(document))
    return "; ".join(whats)


def _damage_lines(rng: Random, path: Path) -> str:
    lines = path.read_bytes().splitlines()
    number = rng.randrange(len(lines))
    document, what = damage_value(rng, json.loads(lines[number]))
    lines[number] = dump(document)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return f"line {number + 1}: {what}"


def _damage_safetensors(rng: Random, path: Path) -> str:
    how: Callable[[Random, Path], str] = rng.choice(
        [_length, _header, _entry, _entry, _bytes, _numbers, _tensors, _tensors]
    )
    return how(rng, path)


def _parts(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _put(path: Path, header: object, body: bytes, length: int | None = None) -> None:
    text = dump(header)
    text += b" " * (-len(text) % 8)
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + body)


def _length(rng: Random, path: Path) -> str:
    header, body = _parts(path)
    length = rng.choice([0, 1, len(body), 10**8, 10**9, 2**40, 2**63, 2**64 - 1])
    _put(path, header, body, length)
    return f"header length {length}"


def _header(rng: Random, path: Path) -> str:
    header, body = _parts(path)
    header, what = damage_value(rng, header)
    _put(path, header, body)
    return f"header: {what}"


def _entry(rng: Random, path: Path) -> str:
    header, body = _parts(path)
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.choice(names), rng.choice(names)
    entry = header[name]
    start, end = entry["data_offsets"]
    match rng.randrange(6):
        case 0:
            shifts = (0, 1, -1, 4, len(body), 2**62)
            entry["data_offsets"] = [start + rng.choice(shifts), end + rng.choice(shifts)]
        case 1:
            entry["data_offsets"] = [end, start]
        case 2:
            entry["data_offsets"] = header[other]["data_offsets"]
        case 3:
            dtypes = ["F32", "F64", "F16", "BF16", "F8_E4M3", "F4", "I64", "BOOL", "U8", "C64", "X"]
            entry["dtype"] = rng.choice(dtypes)
        case 4:
            shape = entry["shape"]
            shapes = [
                shape[::-1],
                [*shape, 1],
                shape[1:],
                [],
                [0],
                [2**62, 4],
                [-1],
                [2**63, 2**63],
            ]
            entry["shape"] = rng.choice(shapes)
        case 5:
            header[f"{name}.copy"] = header.pop(name)
            return f"header: {name} is renamed to {name}.copy"
    _put(path, header, body)
    return f"header: {name} = {entry}"


def _bytes(rng: Random, path: Path) -> str:
    content = path.read_bytes()
    offset = rng.randrange(len(content))
    match rng.randrange(3):
        case 0:
            path.write_bytes(content[:offset])
            return f"cut at byte {offset}"
        case 1:
            path.write_bytes(content + bytes(offset % 9 + 1))
            return f"{offset % 9 + 1} more bytes"
    noise = rng.randbytes(8)
    path.write_bytes(content[:offset] + noise + content[offset + 8 :])
    return f"bytes {offset} to {offset + 8} are {noise.hex()}"


def _numbers(rng: Random, path: Path) -> str:
    def fill(tensors: dict[str, torch.Tensor], name: str) -> str:
        if not tensors[name].is_floating_point() or not tensors[name].numel():
            return "nothing"
        value = rng.choice([torch.nan, torch.inf, -torch.inf, 0.0, 1e30, -1e30])
        flat = tensors[name].view(-1)
        wide = flat.float()
        wide[rng.randrange(len(flat)) if rng.random() < 0.5 else slice(None)] = value
        tensors[name] = wide.to(flat.dtype).view(tensors[name].shape)
        return f"{name} contains {value}"

    return _changed(rng, path, fill)


def _tensors(rng: Random, path: Path) -> str:
    def change(tensors: dict[str, torch.Tensor], name: str) -> str:
        tensor = tensors[name]
        match rng.randrange(7):
            case 0:
                del tensors[name]
                return f"{name} is missing"
            case 1:
                tensors["model.layers.0.extra.weight"] = torch.ones(rng.choice([0, 1, 32]))
                return "an extra tensor"
            case 2:
                tensors[name] = tensor.t().contiguous() if tensor.ndim == 2 else tensor[None]
            case 3:
                dtypes = [
                    torch.int64,
                    torch.float64,
                    torch.float16,
                    torch.bool,
                    torch.float8_e4m3fn,
                ]
                tensors[name] = tensor.to(rng.choice(dtypes))
            case 4:
                tensors[name] = tensor[:-1].contiguous() if tensor.ndim else tensor[None]
            case 5:
                tensors[name] = tensor.new_zeros(0)
            case 6:
                tensors[str(rng.choice(VALUES[25:32]))] = tensors.pop(name)
                return f"{name} is renamed"
        return f"{name} is {list(tensors[name].shape)}, {tensors[name].dtype}"

    return _changed(rng, path, change)


def _changed(rng: Random, path: Path, change: Callable[[dict[str, torch.Tensor], str], str]) -> str:
    metadata = _parts(path)[0].get("__metadata__")
    tensors = load_file(path)
    what = change(tensors, rng.choice(sorted(tensors)))
    save_file(tensors, path, metadata=metadata)
    return what


def copy(source: Path, target: Path) -> None:
    """Copy a file or a directory."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
