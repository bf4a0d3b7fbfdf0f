"""The cases of benchmarks/fuzz.py: a command, and a damaged part of what it reads.

A case is made in a folder of its own, `box/`, and the programs are started in box/cwd. What they
may write to is WRITABLE; box/neighbour and the sound data of fuzzing/material.py stay as they are.
"""

import contextlib
import json
import os
import shlex
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import torch

from benchmarks.fuzzing import mutations
from benchmarks.fuzzing.flags import WRITTEN, argument_text, flag_values, flags_of
from benchmarks.fuzzing.material import (
    CACHE,
    CHECKPOINT,
    MAINS,
    MATERIAL,
    SHEET,
    TABLES,
    TRAIN,
    dicom,
    encoded,
    put,
    volumes,
)
from benchmarks.fuzzing.mutations import hostile_name, hostile_text

# What is told to be written to, and what is by default.
WRITABLE = ("../out", "../cache", "../run", "cache", "runs", "contact_sheet.png")
FIELDS = "config preprocessing calibration progress model weights optimizer".split()
DRY = ["--dry-run", *TRAIN]


@dataclass
class Case:
    """A command, made in the current folder, and what is special about it."""

    kind: str
    program: str
    arguments: list[str]
    stdin: bytes = b""
    notes: list[str] = field(default_factory=list)  # what was damaged
    terminal: bool = False  # whether standard output is one

    @property
    def command(self) -> str:
        words = [self.program, *self.arguments]
        return "python " + " ".join(
            shlex.quote(ascii(w)[1:-1] if not w.isprintable() else w) for w in words
        )


def read_with_any(rng: Random, *data: str) -> tuple[str, list[str]]:
    """A program that reads this data, and its arguments."""
    draw, out = rng.random(), list(data[:1])
    if draw < 0.55 or len(data) > 1:
        return "predict.py", [CHECKPOINT, *data, *predict_flags(rng)]
    if draw < 0.72:
        return "dataset.py", [*out, "--write-slices", "../out/slices", *CACHE]
    if draw < 0.84:
        return "dataset.py", [*out, "--write-split", "../out/split.csv", *CACHE]
    if draw < 0.99:
        return "train.py", ["--data-dir", *out, *DRY]
    return "dataset.py", [*out, *SHEET]


def predict_flags(rng: Random) -> list[str]:
    flags = [
        [],
        ["-o", "../out"],
        ["--json"],
        ["--audit"],
        ["--audit", "--json"],
        ["-o", "../out", "--json"],
        ["-o", "../out/new", "--audit"],
    ]
    drawn = ["--attention", "../out/attention"] if rng.random() < 0.005 else []
    return [*rng.choice(flags), *drawn, "-j", "2"]


def of_names(rng: Random) -> Case:
    """Images and folders whose names hold anything."""
    source = sorted((MATERIAL / "plain").iterdir())
    files = []
    for _ in range(rng.randint(1, 6)):
        folders = ["left", "right", hostile_name(rng), hostile_name(rng)][rng.randrange(4) :]
        folders = rng.sample(folders, min(len(folders), rng.randrange(3)))
        ending = rng.choice([".png"] * 8 + [".PNG", ".tif", ".dcm", ".nii", ".csv", ""])
        path = Path("../data", *folders, hostile_name(rng) + ending)
        with contextlib.suppress(OSError):  # a folder of that name, too long a name
            put(path, rng.choice(source).read_bytes())
            files.append(str(path))
    Path("../data").mkdir(exist_ok=True)
    if files and rng.random() < 0.3:
        program, arguments = read_with_any(rng, *files[:3])
    else:
        program, arguments = read_with_any(rng, "../data")
    naming = [[], [], [], ["--patients", "scan"], ["--slices-per-scan", "2"]]
    naming += [["--name-pattern", r"(?P<label>left|right).*?(?P<patient>\w+)_(?P<slice>\d+)"]]
    naming += [["--name-pattern", r"(?P<patient>.*)/(?P<scan>.*)(?P<slice>\w)"]]
    return Case("names", program, [*arguments, *rng.choice(naming)])


def of_tables(rng: Random) -> Case:
    """A manifest, a table of labels or a split file with other cells, columns or bytes."""
    name = rng.choice(list(TABLES))
    source = MATERIAL / ("run/split.csv" if name == "split" else f"{name}.csv")
    put(f"../data/{name}.csv", mutations.mutated_table(source.read_bytes(), rng))
    if name == "manifest":
        program, arguments = read_with_any(rng, "../data/manifest.csv")
    elif name == "labels":
        program, arguments = read_with_any(rng, f"{MATERIAL}/plain")
        arguments += ["--labels", "../data/labels.csv"]
        if rng.random() < 0.2:
            arguments += [rng.choice(["--label-column", "--label-key"]), argument_text(rng)]
    else:
        arguments = ["--data-dir", f"{MATERIAL}/knees", "--split-file", "../data/split.csv", *DRY]
        program = "train.py"
    return Case(f"table {name}", program, arguments)


def of_checkpoint(rng: Random) -> Case:
    """A checkpoint with other fields or tensors, or damaged bytes."""
    notes = put_checkpoint(rng, Path(CHECKPOINT), Path("../data/best.pt"))
    images = sorted(map(str, (MATERIAL / "knees").iterdir()))[:: rng.choice((5, 12))]
    arguments = ["../data/best.pt", *images, *predict_flags(rng)]
    return Case("checkpoint", "predict.py", arguments, notes=notes)


def put_checkpoint(rng: Random, source: Path, target: Path) -> list[str]:
    """Write a damaged copy. Returns what was done to it."""
    if rng.random() < 0.2:
        put(target, mutations.mutated_zip(source.read_bytes(), rng))
        return ["bytes of the checkpoint"]
    content, notes = torch.load(source, weights_only=True), []
    others = [*mutations.PLAIN, (1, 2), b"x", 1j, {1}, torch.ones(2), torch.ones(1, device="meta")]
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(FIELDS)
        if name not in content or not isinstance(content[name], dict):
            name = "config" if isinstance(content.get("config"), dict) else ""
        if not name or rng.random() < 0.05:
            content, what = mutations.mutated_value(content, rng, others)
        elif name in ("model", "weights") and content[name]:
            key = rng.choice(list(content[name]))
            content[name][key], what = mutated_tensor(content[name][key], rng)
            what = f"{name} {key}: {what}"
        else:
            content[name], what = mutations.mutated_value(content[name], rng, others)
            what = f"{name} {what}"
        notes.append(what)
        if not isinstance(content, dict):
            break
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        target.unlink()
    torch.save(content, target)
    return notes


def mutated_tensor(tensor: object, rng: Random) -> tuple[object, str]:
    plain = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
    if not (plain and tensor.numel()) or tensor.device.type == "meta":  # mutated before
        return torch.ones(3), "ones"
    numbers = [float("nan"), float("inf"), 3e38, -3e38, 1e-45, 1e20, 0.0, 1e30]
    number = rng.choice(numbers)
    changed = tensor.clone()
    changed.flatten()[0] = number
    # fmt: off
    ways = {
        f"an element is {number}": lambda: changed,
        f"filled with {number}": lambda: torch.full_like(tensor, number),
        "float64 of 1e300": lambda: torch.full_like(tensor, 1e300, dtype=torch.float64),
        "float16": lambda: tensor.half(), "whole numbers": lambda: tensor.long(),
        "complex": lambda: tensor.cfloat(), "booleans": lambda: tensor.bool(),
        "sparse": lambda: tensor.to_sparse(), "on no device": lambda: tensor.to("meta"),
        "one axis more": lambda: tensor[None], "flat": lambda: tensor.flatten()[:-1].clone(),
        "empty": lambda: tensor.flatten()[:0], "a number": lambda: tensor.flatten()[0],
        "expanded": lambda: tensor.flatten()[:1].expand(10**9),
        "one value in its shape": lambda: tensor.flatten()[:1].expand(tensor.shape),
        "a parameter": lambda: torch.nn.Parameter(tensor), "a list": lambda: tensor.tolist(),
    }
    # fmt: on
    what = rng.choice(list(ways))
    try:
        return ways[what](), what
    except RuntimeError:  # some can't be of an axis of no length
        return torch.ones(3), "ones"


def of_run(rng: Random) -> Case:
    """A run to be resumed, in which a file has other values, other bytes, or is no file."""
    shutil.copytree(MATERIAL / "run", "../run")
    name = rng.choice(["args.json"] * 8 + ["last.pt"] * 6 + ["split.csv"] * 3 + ["special"] * 2)
    notes = []
    path = Path("../run", name)
    if name == "args.json":
        content, what = mutations.mutated_json(json.loads(path.read_bytes()), rng)
        path.write_bytes(content)
        notes = [what]
    elif name == "last.pt":
        notes = put_checkpoint(rng, MATERIAL / "run/last.pt", path)
    elif name == "split.csv":
        path.write_bytes(mutations.mutated_table(path.read_bytes(), rng))
    else:
        names = "args.json split.csv last.pt best.pt metrics.csv curves.png .a.1-1.unfinished.pt"
        path, kind = Path("../run", rng.choice(names.split())), rng.choice(mutations.SPECIAL)
        mutations.put_special(path, kind)
        notes = [f"{path.name} is {kind}"]
    return Case(f"run {name}", "train.py", ["--resume", "../run", *CACHE[:2]], notes=notes)


def of_cache(rng: Random) -> Case:
    """A file of the cache with other values, other bytes, or none; its checksum may be right."""
    shutil.copytree(MATERIAL / "cache", "../cache")
    data = rng.choice(["knees", "volumes"])
    kind = rng.choice([".npy", ".json", "copies", "headers"])
    paths = list(
        Path("../cache").glob({"headers": "headers/*", ".npy": "*.npy"}.get(kind, "*.json"))
    )
    if kind in (".json", "copies"):
        paths = [path for path in paths if path.name.startswith("copies") == (kind == "copies")]
    # Their names follow from the folder that all is in: their sizes do not.
    path, notes = rng.choice(sorted(paths, key=lambda path: path.stat().st_size)), []
    content = path.read_bytes()
    if rng.random() < 0.15:
        special = rng.choice(mutations.SPECIAL)
        mutations.put_special(path, special)
        notes = [f"{kind} is {special}"]
    elif kind == ".npy" or rng.random() < 0.2:
        path.write_bytes(mutations.mutated_bytes(content, rng))
    elif kind == "headers":
        state, _, line = content.partition(b"\n")
        text, what = mutations.mutated_json(json.loads(line.partition(b" ")[2]), rng)
        text = text.replace(b"\n", b" ")
        path.write_bytes(b"%s\n%08x %s" % (state, zlib.crc32(text), text))
        notes = [what]
    else:
        content, what = mutations.mutated_json(json.loads(content), rng)
        path.write_bytes(content)
        notes = [what]
    program, arguments = "train.py", ["--data-dir", f"{MATERIAL}/{data}", *DRY]
    if data == "volumes":
        program = "dataset.py"
        arguments = [f"{MATERIAL}/volumes", "--write-split", "../out/split.csv", *SHEET]
    return Case(f"cache {kind}", program, arguments, notes=notes)


def of_volumes(rng: Random) -> Case:
    """A volume of any format but DICOM whose header or packing is damaged."""
    sound, ending = volumes(), rng.choice(".nii .nii.gz .nrrd .mha .mhd .npy".split())
    target = next(name for name in sound if name.endswith(ending))
    mutate = mutations.mutated_gzip if ending == ".nii.gz" else mutations.mutated_bytes
    put(f"../data/{target}", mutate(sound[target], rng))
    if ending == ".mhd":
        put("../data/p05_LEFT.raw", sound["p05_LEFT.raw"])
    if rng.random() < 0.5:  # a sound one beside it
        put("../data/p09_RIGHT.npy", sound["p06_RIGHT.npy"])
    program, arguments = read_with_any(rng, rng.choice(["../data", f"../data/{target}"]))
    return Case(f"volume {ending}", program, arguments)


def of_series(rng: Random) -> Case:
    """A DICOM series, also in an archive, with damaged bytes in one slice, or with other tags."""
    slices, notes = {n: content for n, content in volumes().items() if n.endswith(".dcm")}, []
    odd = rng.choice(list(slices))
    if rng.random() < 0.5:
        slices[odd] = mutations.mutated_bytes(slices[odd], rng, len(slices[odd]))
    else:
        tags = [(8, 0x103E), (8, 0x20), (0x10, 0x20), (0x18, 0x81), (0x20, 0xD), (0x20, 0xE)]
        tag = rng.choice([*tags, (0x20, 0x11), (0x20, 0x32), (0x20, 0x37), (0x28, 0x30)])
        text = hostile_text(rng)[:200].encode("utf-8", "replace")
        notes = [f"tag {tag} is {text!r}"]
        pixels = np.arange(108, dtype="<i2").reshape(9, 12)
        for name in slices if rng.random() < 0.7 else [odd]:
            slices[name] = dicom(int(name[-7:-4]), pixels, {tag: b"LO" + text})
    path = rng.choice(["../data/p07_RIGHT", "../data/p07_RIGHT.tar.gz"])
    if path.endswith(".gz"):
        put(path, mutations.mutated_tar(list(slices.items()), rng))
    else:
        for name, content in slices.items():
            put(f"../data/{name}", content)
    program, arguments = read_with_any(rng, rng.choice(["../data", path]))
    return Case(f"series {Path(path).suffix}", program, arguments, notes=notes)


def of_images(rng: Random) -> Case:
    """Images of every format whose headers or pixels are damaged."""
    pixels = np.random.default_rng(rng.randrange(4)).integers(0, 255, (16, 16), dtype=np.uint8)
    form = rng.choice(["png", "png", "tiff", "jpeg", "bmp"])
    deep = form in ("png", "tiff") and rng.random() < 0.3
    content = encoded(pixels.astype(np.uint16) * 200 if deep else pixels, form)
    if form == "png" and rng.random() < 0.8:
        content = mutations.mutated_png(content, rng)
    else:
        content = mutations.mutated_bytes(content, rng)
    name = f"../data/OAI9000001_V_1_LEFT.nii.gz_3.{form}"
    put(name, content)
    if rng.random() < 0.5:
        put("../data/OAI9000002_V_1_RIGHT.nii.gz_3.png", encoded(pixels))
    program, arguments = read_with_any(rng, rng.choice(["../data", name]))
    return Case(f"image {form}", program, arguments)


def of_standard_input(rng: Random) -> Case:
    """A list of names on standard input that is damaged, or none."""
    known = sorted(map(str, (MATERIAL / "knees").iterdir()))
    lines = rng.sample(known, 3)
    lines += [f"{MATERIAL}/volumes/p01_LEFT.nii", f"{MATERIAL}/manifest.csv"]
    lines += [hostile_text(rng) for _ in range(rng.randrange(4))]
    lines += rng.choices(["/dev/zero", "/dev/null", "-", "/proc/self/fd/0", str(MATERIAL)], k=1)
    rng.shuffle(lines)
    content = "\n".join(lines[: rng.randint(1, 6)]).encode("utf-8", "surrogatepass")
    draw = rng.random()
    if draw < 0.4:
        content = mutations.mutated_bytes(content, rng, len(content))
    elif draw < 0.6:
        content = rng.randbytes(rng.choice((1, 100, 5000)))
    elif draw < 0.65:
        content = rng.choice([bytes(2 * 10**6), b"x" * 2 * 10**6, b"\n" * 10**5, b"a\n" * 200])
    paths = rng.choice([["-"], ["-"], ["-", "-"], [known[0], "-"]])
    arguments = [CHECKPOINT, *paths, *predict_flags(rng)]
    return Case("standard input", "predict.py", arguments, stdin=without_foreign_folders(content))


def without_foreign_folders(content: bytes) -> bytes:
    """Without lines that became folders beyond the hunt's own: to list `/` takes its time."""

    def is_foreign(line: bytes) -> bool:
        path = os.path.realpath(line.replace(b"\0", b""))
        return os.path.isdir(path) and not path.startswith(os.fsencode(MATERIAL.parent))

    lines = content.splitlines(keepends=True)
    return b"".join(line for line in lines if not is_foreign(line.rstrip(b"\r\n")))


def of_command_line(rng: Random) -> Case:
    """Flags with values that they can't have, missing ones, doubled ones."""
    images = sorted(map(str, (MATERIAL / "knees").iterdir()))[:2]
    program = rng.choice(list(MAINS))
    base = {
        "train.py": ["--data-dir", f"{MATERIAL}/knees", *DRY],
        "predict.py": [CHECKPOINT, *images],
        "dataset.py": ["-j", "2", f"{MATERIAL}/volumes", "--write-slices", "../out/slices"],
    }
    arguments = list(base[program])
    for _ in range(rng.choice((1, 1, 2))):
        draw = rng.random()
        if draw < 0.12 and arguments:
            del arguments[rng.randrange(len(arguments))]
            if program == "train.py" and "--dry-run" not in arguments:
                arguments.append("--dry-run")
        elif draw < 0.17:
            place = rng.randrange(len(arguments) + 1)
            if not WRITTEN.intersection(arguments[place - 1 : place]):  # it would be written there
                arguments.insert(place, argument_text(rng))
        else:
            flag = rng.choice(flags_of(program))
            arguments += [flag, *flag_values(flag, rng)]
    return Case("command line", program, arguments)


def of_special_files(rng: Random) -> Case:
    """Pipes, devices, loops of links, ... in the place of any file that is named or written."""
    kind = rng.choice(mutations.SPECIAL)
    names = "x.nii x.nii.gz x.nrrd x.mhd x.mha x.npy x.dcm x x.tar.gz x.png x.tif x.jpg table.csv"
    name = rng.choice([*names.split(), "best.pt", "split.csv", "labels.csv", "predictions.csv"])
    path, knees = Path("../data", name), f"{MATERIAL}/knees"
    if name == "predictions.csv":
        path = Path("../out", rng.choice(["predictions.csv", "scans.csv", "attention"]))
        arguments = [CHECKPOINT, f"{MATERIAL}/plain", "-o", "../out"]
        program = "predict.py"
    elif name == "best.pt":
        program, arguments = "predict.py", ["../data/best.pt", knees]
    elif name == "split.csv":
        arguments = ["--data-dir", knees, "--split-file", str(path), *DRY]
        program = "train.py"
    elif name == "labels.csv":
        program, arguments = read_with_any(rng, f"{MATERIAL}/plain")
        arguments += ["--labels", str(path)]
    else:
        image = sorted(Path(knees).iterdir())[0].read_bytes()
        put("../data/OAI9000002_V_1_RIGHT.nii.gz_3.png", image)
        program, arguments = read_with_any(rng, rng.choice(["../data", str(path)]))
        if name == "x.mhd" and rng.random() < 0.5:  # its data is
            put(path, volumes()["p05_LEFT.mhd"].replace(b"p05_LEFT", b"x"))
            path = Path("../data/x.raw")
    mutations.put_special(path, kind)
    return Case("special file", program, arguments, notes=[f"{path} is {kind}"])


KINDS: dict[Callable[[Random], Case], int] = {  # and how often each is drawn
    of_names: 16,
    of_tables: 14,
    of_checkpoint: 14,
    of_run: 12,
    of_cache: 9,
    of_volumes: 7,
    of_series: 6,
    of_images: 7,
    of_standard_input: 7,
    of_command_line: 14,
    of_special_files: 7,
}


def make_case(seed: int, number: int) -> Case:
    """Make the case in a new box, whose `cwd` is the current folder."""
    rng = Random(f"{seed} {number}")
    make = rng.choices(list(KINDS), list(KINDS.values()))[0]
    case = make(rng)
    case.terminal = rng.random() < 0.05
    return case
