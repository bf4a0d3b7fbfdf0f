"""Tables byte for byte as programs write them, and the same ones damaged, for several tests."""

import random
from collections.abc import Iterator

LINES = ["path,label,patient", "a/1.png,left,p1", "größe 2.png,right,p2"]
ROWS = [
    {"path": "a/1.png", "label": "left", "patient": "p1"},
    {"path": "größe 2.png", "label": "right", "patient": "p2"},
]


def joined(delimiter: str, end: str, first: str = "") -> str:
    return first + "".join(line.replace(",", delimiter) + end for line in LINES)


DIALECTS = {
    "comma": joined(",", "\n").encode(),
    "excel": joined(",", "\r\n").encode("utf-8-sig"),
    "german excel": joined(";", "\r\n").encode("utf-8-sig"),
    "excel's own delimiter": joined(";", "\r\n", "sep=;\r\n").encode("utf-8-sig"),
    "sep in quotes": joined("|", "\n", '"sep=|"\n').encode(),
    "excel unicode text": joined("\t", "\r\n").encode("utf-16"),
    "utf-16 le": b"\xff\xfe" + joined("\t", "\r\n").encode("utf-16-le"),
    "utf-16 be": b"\xfe\xff" + joined(",", "\n").encode("utf-16-be"),
    "utf-32": joined(",", "\n").encode("utf-32"),
    "bars": joined("|", "\n").encode(),
    "old mac": joined(",", "\r").encode(),
    "no last line end": joined(",", "\n").encode()[:-1],
    "quotes": joined('","', '"\n"').encode().join([b'"', b""])[:-1],
    "blank lines": joined(",", "\n\n\r\n", "\n \n").encode(),
    "empty columns": joined(",", ",,\n").encode() + b",,,,\n",
    "spaces around names": joined(",", "\n").replace("label", " label ").encode(),
}


def damaged(content: bytes, seed: int) -> bytes:
    """One to three faults: cut off, flipped, doubled, NUL, quotes, line ends, other bytes."""
    rng = random.Random(seed)
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(content) + 1)
        fault = rng.randrange(8)
        if fault == 0:
            del content[i:]
        elif fault == 1 and i < len(content):
            content[i] ^= 1 << rng.randrange(8)
        elif fault == 2:
            content[i:i] = b"\0"
        elif fault == 3:
            content = content.replace(b",", b",,", 1).replace(b";", b";;", 1)
        elif fault == 4:
            content[i:i] = b'"'
        elif fault == 5:
            content[i:i] = rng.choice([b"\r", b"\n", b"\r\n", b"\xff\xfe", b"\xef\xbb\xbf", b"|"])
        elif fault == 6:
            content[i:i] = rng.randbytes(rng.randint(1, 40))
        else:
            content[i:i] = content[: rng.randrange(len(content) + 1)]
    return bytes(content)


def damaged_ones(contents: list[bytes], variants: int = 300) -> Iterator[bytes]:
    """Each of them damaged in turn."""
    for seed in range(variants):
        yield damaged(contents[seed % len(contents)], seed)
