"""Flags of the programs, and values that they can't have."""

import contextlib
import io
import re
from pathlib import Path
from random import Random

from benchmarks.fuzzing import mutations
from benchmarks.fuzzing.material import MAINS, MATERIAL
from benchmarks.fuzzing.mutations import hostile_name, hostile_text

WRITTEN = "--output-dir --output --cache-dir --attention --write-slices --write-split --export"
WRITTEN = {*WRITTEN.split(), "--contact-sheet", "--write-problems"}
KNOWN_FLAGS: dict[str, list[str]] = {}  # of each program
NEVER = {"--demo", "--compile", "--tensorboard", "--help", "--no-dry-run"}  # slow, or no dry run


def flags_of(program: str) -> list[str]:
    """All flags, as its help lists them."""
    if program not in KNOWN_FLAGS:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            MAINS[program](["--help"])
        found = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text.getvalue()))
        KNOWN_FLAGS[program] = sorted(found - NEVER)
    return KNOWN_FLAGS[program]


def flag_values(flag: str, rng: Random) -> list[str]:
    """Those of a flag that is written to stay below ../out."""
    if flag in WRITTEN:
        place = f"../out/{hostile_name(rng)}{rng.choice(['', '.png', '.onnx', '.csv'])}"
        if rng.random() < 0.3:
            mutations.put_special(Path("../out/place"), rng.choice(mutations.SPECIAL[:10]))
            place = rng.choice(["../out/place", "../out/place/below", "../out/place.png"])
        return [place]
    count = rng.choice((2, 2, 2, 1) if flag == "--image-size" else (0, 1, 1, 1, 1, 2, 3))
    named = f"{MATERIAL}/labels.csv ../../material/run /dev/zero cuda meta mps cpu:7".split()
    named += r"(?P<patient>\w+)_ (?P<slice>\w) (?P<label>.) (?P<scan>) (?P<patient>".split()
    return [rng.choice([argument_text(rng), argument_text(rng), *named]) for _ in range(count)]


def argument_text(rng: Random) -> str:
    """What a shell can pass."""
    return hostile_text(rng).replace("\0", "").replace("\ud800", "")
