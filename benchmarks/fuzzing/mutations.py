"""Damage to bytes, texts, numbers, plain values, tables, images, archives and files.

    mutated_bytes(content, random.Random(3))              # cut, flipped, doubled, ...
    mutated_value({"depth": 2}, random.Random(3))         # a field of another type, or absent

What is done follows from the random generator alone, so that a seed does it again.
"""

import csv
import gzip
import io
import json
import os
import re
import socket
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from random import Random

FORGED = "FORGED: 0 mismatch"  # a line of output that no program of ours prints
# fmt: off
NUMBERS = [
    0, -1, 1, 2, 3, -4, 5, 255, 256, 65536, 10**6, 10**8, 10**9, 10**12, 10**30, 10**400,
    2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63),
    0.0, -0.0, 0.5, 1.5, -1.5, 1e-320, 1e-45, 1e-7, 1e6, 1e9, 3e38, 1e300, -1e300,
    float("nan"), float("inf"), float("-inf"),
]
TEXTS = [
    "", " ", "nan", "inf", "-1", "1e400", "left", "RIGHT", "l", "train", "None", "null", "true",
    "=1+1", "+1", "-1+1", "@SUM(A1)", "'=1", "''", "'", "\t=1", "=cmd|' /C calc'!A0", "\uff1d1",
    "\x1b[31mred\x1b[0m", "\x1b]0;title\a", "\r" + FORGED, "\n" + FORGED, "a\n" + FORGED,
    "\x9b2J", "\x00", "a\x00b", "\x7f", "\x85" + FORGED, "\u2028" + FORGED, "\u202eright",
    "\ufeff", "\ud800", "\udcff", "\u00b2", "\u0663", "\uff11", "\u00df", "\u0130", "\U0001f480",
    "x" * 300, "x" * 5000, "$x^2$", "$\\frac{", "%s %n {0}", "..", ".", "../..", "-", "--",
    "--help", "~", "*", "[", "a,b;c\td|e", '"', "a\\b", "\\",
]
UNTEXT = [
    b"", b"\xff\xfe", b"\x1b[2J", b"\0", b"\r\n", b"'", b'"', b",", b";", b"\xef\xbb\xbf",
    b"[" * 3000,
]
# fmt: on
PLAIN = [None, True, False, [], {}, [None], [[]], [[1, [2, [3]]]], {"": {}}, {"a": [None, {}]}]


# ---- bytes and texts -----------------------------------------------------------------------------


def mutated_bytes(content: bytes, rng: Random, header: int = 400) -> bytes:
    """One to three faults, most of them within the header: its first bytes."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        end = min(len(content), header) if rng.random() < 0.8 else len(content)
        i = rng.randrange(end + 1)
        fault = rng.randrange(9)
        if fault == 0:
            del content[i:]
        elif fault == 1 and i < len(content):
            content[i] ^= 1 << rng.randrange(8)
        elif fault == 2:
            content[i : i + rng.choice((1, 2, 4, 8))] = b""
        elif fault == 3:
            content[i:i] = rng.choice(UNTEXT)
        elif fault == 4:
            content[i:i] = rng.randbytes(rng.randint(1, 40))
        elif fault == 5:
            content[i : i + rng.randint(1, 64)] = bytes(rng.randint(1, 64))
        elif fault == 6:
            content[i:i] = content[: rng.randrange(len(content) + 1)]
        elif fault == 7:  # a number of the header
            form = rng.choice(("<h", "<i", "<q", "<f", "<d", ">h", ">i", ">f"))
            i -= i % struct.calcsize(form)
            content[i : i + struct.calcsize(form)] = struct.pack(form, extreme(form[1], rng))
        else:
            content = bytearray(mutated_numbers(bytes(content), rng))
    return bytes(content)


def extreme(form: str, rng: Random) -> float:
    """A number that struct can pack."""
    if form in "fd":
        return rng.choice([0.0, -1.0, 1e-40, 1e30, float("nan"), float("inf"), float("-inf")])
    bits = 8 * struct.calcsize(f"<{form}")
    return rng.choice([0, -1, 1, 7, 255, 2 ** (bits - 1) - 1, -(2 ** (bits - 1)), 2 ** (bits - 2)])


def mutated_numbers(content: bytes, rng: Random) -> bytes:
    """One of the numbers that stand in a text is another one."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content[:20_000]))
    if not found:
        return content
    match = rng.choice(found)
    return content[: match.start()] + number_text(rng).encode() + content[match.end() :]


def number_text(rng: Random) -> str:
    number = rng.choice(NUMBERS)
    return str(number) if abs(number) < 10**100 else rng.choice(["1e400", "9" * 400])


def hostile_text(rng: Random) -> str:
    return number_text(rng) if rng.random() < 0.3 else rng.choice(TEXTS)


def hostile_name(rng: Random) -> str:
    """A file's name as the system allows it: no slash, no zero, at most 200 bytes."""
    text = rng.choice(["", "p01_", "left ", "OAI9000001_V_1_"]) + hostile_text(rng)
    text += rng.choice(["", "_7", " (2)", "_RIGHT", "_LEFT.nii.gz_3"])
    content = text.encode("utf-8", "surrogateescape" if "\ud800" not in text else "replace")
    content = content.replace(b"/", b":").replace(b"\0", b"")[:200]
    return os.fsdecode(content if content.strip(b".") else b"x" + content)


# ---- plain values --------------------------------------------------------------------------------


def mutated_value(value: object, rng: Random, others: list = PLAIN) -> tuple[object, str]:
    """A copy in which something is of another value or type, absent, added or nested; and what."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        if rng.random() < 0.12:
            return {k: v for k, v in value.items() if k != name}, f"no {name!r}"
        if rng.random() < 0.08:
            other = rng.choice([*map(str, NUMBERS), *TEXTS, 5])
            return {**value, other: value[name]}, f"{other!r} added"
        inner, what = mutated_value(value[name], rng, others)
        return {**value, name: inner}, f"{name!r}: {what}"
    if isinstance(value, (list, tuple)) and value and rng.random() < 0.7:
        i, content = rng.randrange(len(value)), list(value)
        fault = rng.randrange(4)
        if fault == 0:
            return [*content[:i], *content[i + 1 :]], f"[{i}] removed"
        if fault == 1:
            return [*content, *content], "doubled"
        content[i], what = mutated_value(content[i], rng, others)
        return content, f"[{i}]: {what}"
    new = rng.choice(
        [rng.choice(NUMBERS), rng.choice(TEXTS), rng.choice(others), [value], str(value)]
    )
    return new, f"{value!r:.60} -> {new!r:.60}" if not is_long(new) else "a number of 400 digits"


def is_long(value: object) -> bool:
    return isinstance(value, int) and abs(value) > 10**100


def mutated_json(value: object, rng: Random) -> tuple[bytes, str]:
    """A text: mostly JSON of a mutated value, or one that is damaged, or nested without end."""
    draw = rng.random()
    if draw < 0.8:
        what = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            value, done = mutated_value(value, rng)
            what.append(done)
        return json.dumps(value, indent=2).encode(), "; ".join(what)
    if draw < 0.95:
        return mutated_bytes(json.dumps(value).encode(), rng, 10_000), "bytes damaged"
    content = [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b"null", b"", b'"\\ud800"']
    return rng.choice(content), "another JSON"


# ---- tables --------------------------------------------------------------------------------------


def mutated_table(content: bytes, rng: Random) -> bytes:
    """Cells, columns and rows changed, or the bytes."""
    rows = list(csv.reader(io.StringIO(content.decode())))
    for _ in range(rng.choice((1, 1, 2, 3))):
        row = rng.choice(rows)
        fault = rng.randrange(9)
        if fault < 4 and row:
            row[rng.randrange(len(row))] = hostile_text(rng)
        elif fault == 4 and row:
            row[rng.randrange(len(row))] = rng.choice(rng.choice(rows) or [""])
        elif fault == 5:
            row += [hostile_text(rng)] * rng.choice((1, 300))
        elif fault == 6:
            rows.append(list(row))
        elif fault == 7 and len(rows) > 1:
            rows.remove(row)
        else:  # another header
            rows[0] = [rng.choice([*rows[0], hostile_text(rng)]) for _ in rows[0]]
    stream = io.StringIO(newline="")
    delimiter = rng.choice((",", ",", ",", ";", "\t", "|"))
    csv.writer(stream, delimiter=delimiter, lineterminator=rng.choice(("\n", "\r\n"))).writerows(
        rows
    )
    text = stream.getvalue()
    encoding = rng.choice(("utf-8",) * 6 + ("utf-8-sig", "utf-16", "latin-1", "utf-32"))
    content = text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")
    return mutated_bytes(content, rng, 10_000) if rng.random() < 0.2 else content


# ---- images and archives -------------------------------------------------------------------------


def mutated_png(content: bytes, rng: Random) -> bytes:
    """A chunk changed, lost or doubled; checksums are right, so that it is read on."""
    chunks, at = [], 8
    while at + 8 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + length]])
        at += 12 + length
    chunk = rng.choice([chunks[0], *chunks])
    fault = rng.randrange(6)
    if fault < 3:
        chunk[1] = mutated_bytes(chunk[1], rng)
    elif fault == 3:
        chunks.remove(chunk)
    elif fault == 4:
        chunks.insert(rng.randrange(len(chunks)), list(chunk))
    else:
        kind = rng.choice([b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"eXIf", b"acTL", b"fcTL", b"gAMA"])
        chunks.insert(1, [kind, rng.choice([b"", rng.randbytes(20), zlib.compress(bytes(10**6))])])
    whole = content[:8]
    for kind, data in chunks:
        whole += struct.pack(">I", len(data)) + kind + data
        whole += struct.pack(">I", zlib.crc32(kind + data))
    return whole


def mutated_gzip(content: bytes, rng: Random) -> bytes:
    """What is packed is damaged, or the packing."""
    if rng.random() < 0.7:
        return gzip.compress(mutated_bytes(gzip.decompress(content), rng), 1, mtime=0)
    return mutated_bytes(content, rng, 100)


def mutated_zip(content: bytes, rng: Random, inside: str = "data.pkl") -> bytes:
    """A zip archive, such as a checkpoint, with one damaged member whose checksum is right."""
    if rng.random() < 0.3:
        return mutated_bytes(content, rng, len(content))
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        chosen = rng.choice([inside, inside, *(info.filename for info in old.infolist())])
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith(chosen):
                if rng.random() < 0.1:
                    continue
                data = mutated_bytes(data, rng, len(data))
            new.writestr(zipfile.ZipInfo(info.filename), data)
    return stream.getvalue()


def mutated_tar(members: list[tuple[str, bytes]], rng: Random) -> bytes:
    """A tar.gz archive of such members, of which some are damaged, renamed or something else."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as tar:
        odd = rng.randrange(len(members))
        for i, (name, content) in enumerate(members):
            info, fault = tarfile.TarInfo(name), rng.randrange(5) if i == odd else -1
            if fault == 0:
                content = mutated_bytes(content, rng)
            elif fault == 1:
                info.name = (
                    rng.choice(["../escaped", "/tmp/escaped", "a" * 300, *TEXTS[:60]]) or "x"
                )
                info.name = info.name.encode("utf-8", "replace").decode()
            elif fault == 2:
                info.type = rng.choice(
                    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
                )
                info.linkname = rng.choice(["../../neighbour/keep.txt", "/etc/passwd", name])
            elif fault == 3:
                info.name = "x/" * 100 + name
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    content = stream.getvalue()
    return mutated_gzip(content, rng) if rng.random() < 0.3 else content


# ---- what lies in the place of a file ------------------------------------------------------------

SPECIAL = (
    "pipe socket loop dangling zero null full random folder empty sparse neighbour unreadable tty"
).split()


def put_special(path: Path, kind: str) -> None:
    """Put something that is no ordinary file where `path` is, or would be."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(f"{path.name}.before"))
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    links = {
        "loop": path.name,
        "dangling": "nowhere/at all",
        "zero": "/dev/zero",
        "null": "/dev/null",
        "full": "/dev/full",
        "random": "/dev/urandom",
        "tty": "/dev/tty",
        "neighbour": os.path.relpath("../neighbour/keep.txt", path.parent),
    }
    if kind in links:
        path.symlink_to(links[kind])
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.fspath(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 2**36)
    else:
        path.touch(0 if kind == "unreadable" else 0o644)
