"""Each layout of docs/data.md, made of small real files, and read by the very line in that page."""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import TINY, write_scan
from PIL import Image

import dataset
import train
from scans.listing import list_slices
from scans.slices import Options, Slice
from training.arguments import parse_args

PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
ROWS = re.findall(r"^\| `(.*?)` \| (.*?) \| `(python .*?)` \|$", PAGE, re.MULTILINE)
LINES = [line for *_, line in ROWS]
LINES += re.findall(r"^python .*", "".join(b for name, b in BLOCKS if name == "bash"), re.M)
FILES = [(path, text) for path, text, _ in ROWS]  # of the page, and what it says of them
FILES += re.findall(
    r"^(\w\S*(?: \S+)*?)(?:  +(.*))?$", "".join(b for name, b in BLOCKS if name == "text"), re.M
)
PROGRAMS = {
    "train.py": (train.main, [*TINY, "--dry-run"]),
    "dataset.py": (dataset.main, []),
}
UPPER = ("LEFT", "RIGHT")
OAI_PATIENTS = range(9003175, 9003183)
OAI_SIDES = ((1, "Right"), (2, "Left"))
GENERATOR = np.random.default_rng(0)


# ---- small data ----------------------------------------------------------------------------------


def random_pixels(*shape: int) -> np.ndarray:
    """Others at each call: the same image in two scans would be a copy."""
    return GENERATOR.integers(0, 256, shape).astype(np.uint8)


def paths_of(
    template: str,
    sides: Sequence[str] = ("left", "right"),
    patients: Iterable[int] = range(1, 9),
    visits: Sequence[str] = ("visit1", "visit2"),
    slices: Iterable[int] = range(6, 9),
) -> list[Path]:
    """Each path of a template once: knees/{side}/p{patient:02}_{slice}.png."""
    made = [
        template.format(side=side, patient=patient, visit=visit, slice=number)
        for side, patient, visit, number in product(sides, patients, visits, slices)
    ]
    return [Path(name) for name in dict.fromkeys(made)]


def write_images(template: str, **more) -> None:
    for path in paths_of(template, **more):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_pixels(8, 8)).save(path)


def write_joints(template: str) -> None:
    """The patients of normal joints are others than those of abnormal ones."""
    write_images(template, sides=["normal"], patients=[*range(1, 8), 12])
    write_images(template, sides=["abnormal"], patients=[*range(8, 12), *range(13, 17)])


def write_volumes(template: str, **more) -> None:
    files = pytest.importorskip("volume_files")
    for path in paths_of(template, **more):
        files.write_volume(path, random_pixels(6, 9, 12).astype(np.int16))


def write_text(path: str, *lines: str, encoding: str = "utf-8") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join([*lines, ""]), encoding=encoding)


# ---- layouts -------------------------------------------------------------------------------------


def build_akoa() -> None:
    for patient in (9014797, *range(9014801, 9014808)):
        for side in ("LEFT", "RIGHT"):
            write_scan(Path("AKOA_Analysis/more"), patient, side, slices=2)
    for path in Path("AKOA_Analysis/more").iterdir():
        Image.fromarray(random_pixels(8, 8)).save(path)
    write_scan(Path("AKOA_Analysis/auto_test"), 9014797, "RIGHT", slices=1)
    Path("AKOA_Analysis/Thumbs.db").write_bytes(b"litter")


def build_released() -> None:
    for subset, patients in (("train", range(1, 9)), ("test", range(9, 12))):
        write_images(f"released/{subset}/{{side}}/p{{patient:02}}_{{slice}}.png", patients=patients)


def build_dess() -> None:
    """Each file has a number of its own."""
    for i, patient in enumerate(range(9126260, 9126268)):
        for j, side in enumerate(UPPER):
            number = 11309302 + 2 * i + j
            write_volumes(f"dess/{patient}_20060921_SAG_3D_DESS_{side}_{number}_image.nii.gz")


def build_slices() -> None:
    """What the page's line before it writes."""
    write_volumes("scans/p{patient:02}_{side}.nii.gz", sides=UPPER)
    run(next(line for line in LINES if "--write-slices" in line))


def build_dicom() -> None:
    files = pytest.importorskip("volume_files")
    for number, side in product(range(1, 9), ("left", "right")):
        tags = {"0010|0020": f"K{number:03}", "0020|000e": f"1.2.{number}.{len(side)}"}
        folder = Path(f"headers/export{number}/knee_{side}")
        pixels = random_pixels(6, 8, 10).astype(np.int16)
        files.write_dicom(folder, pixels, tags, x=0.0)


def build_mrnet() -> None:
    for subset, first in (("train", 0), ("valid", 1130)):
        for plane, number in product(("axial", "coronal", "sagittal"), range(8)):
            path = Path(f"MRNet-v1.0/{subset}/{plane}/{first + number:04}.npy")
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, random_pixels(6, 9, 12))
        rows = (f"{first + number:04},{number % 2}" for number in range(8))
        write_text(f"MRNet-v1.0/{subset}-acl.csv", *rows)


def build_oai() -> None:
    """One series is still in its archive."""
    files = pytest.importorskip("volume_files")
    files.make_oai(Path(), patients=8, visits=1)
    files.pack(Path("00m/0.C.2/9000002/20040101/10000010"))
    write_grades("kxr.txt", range(9000001, 9000009))


def write_grades(path: str, patients: Iterable[int]) -> None:
    """As the OAI has them: a grade from 0 to 2 for each knee."""
    rows = [f"{p}|{n}: {side}|{(p + n) % 3}" for p in patients for n, side in OAI_SIDES]
    write_text(path, "ID|SIDE|V00XRKL", *rows)


def build_oai_images() -> None:
    write_images("oai/{patient}{side}.png", sides="LR", patients=OAI_PATIENTS)
    write_grades("kxr.txt", OAI_PATIENTS)


def build_xray() -> None:
    """Letters tell the sides of images, words those of the table. Its patients lost their zeros."""
    write_images("xray/P{patient:03}_{side}.png", sides="LR")
    rows = [f"{p},{side},{(p + n) % 3}" for p in range(1, 9) for n, side in OAI_SIDES]
    write_text("grades-by-side.csv", "patient,side,grade", *rows)


def build_hospital() -> None:
    """Paths hold accession numbers; some patients have two."""
    rows = []
    for number in range(12):
        accession, patient = 32011 + 7 * number, 1 + number % 8
        write_images(f"export/{accession}/4/IM{{slice:04}}.png", slices=range(1, 4))
        rows.append(f"{accession},{patient},{'yes' if patient % 2 else 'no'}")
    write_text("cases.csv", "accession,patient,tear", *rows)


def build_bids() -> None:
    rows = []
    for number in range(1, 9):
        path = Path(f"bids/sub-{number:02}/ses-01/anat/sub-{number:02}_ses-01_T1w.npy")
        path.parent.mkdir(parents=True)
        np.save(path, random_pixels(6, 9, 12))
        rows.append(f"sub-{number:02}\t{'case' if number % 2 else 'control'}\t{50 + number}")
    write_text("bids/participants.tsv", "participant_id\tgroup\tage", *rows)


def build_sites() -> None:
    for site in ("aarhus", "bergen"):
        write_images(
            f"aarhus-bergen/{site}/{{patient}}/{{side}}/{{slice}}.png", patients=range(1, 5)
        )


def build_manifest() -> None:
    rows = []
    for number in range(1, 17):
        letter, label = ("a", "normal") if number % 2 else ("b", "abnormal")
        for image in (1, 2):
            write_images(f"images/{letter}{number}_{image}.png")
            rows.append(
                f"images/{letter}{number}_{image}.png,{label},p{number:02},baseline {number}"
            )
    write_text("manifest.csv", "path,label,patient,scan", *rows)


def build_grades() -> None:
    """As a German spreadsheet saves a table, in Windows' letters."""
    for number in range(1, 10):
        write_images(f"größe {number}.png")
    rows = (f"größe {number}.png;{number % 3};P{number:02};ja" for number in range(1, 10))
    write_text("grades.csv", "File Name;Grade;Patient ID;geprüft", *rows, encoding="cp1252")


class Found(NamedTuple):
    """What a line of the page finds."""

    patients: int
    scans: dict[str, int]  # of each label


class Layout(NamedTuple):
    """A data folder or a manifest of the page, and what the page's lines about it find, in order.

    A number is the exit code of a line that lists nothing.
    """

    build: Callable[[], None]  # in the current folder
    lines: list[Found | int]


def images(template: str, **more) -> Callable[[], None]:
    return partial(write_images, template, **more)


REFUSED = 2
KNEES = Found(8, {"left": 8, "right": 8})
VISITS = Found(8, {"left": 16, "right": 16})
JOINTS = Found(16, {"normal": 8, "abnormal": 8})
GRADES = Found(8, {"0": 6, "1": 5, "2": 5})
RELEASED = Found(11, {"left": 11, "right": 11})
LAYOUTS = {
    "AKOA_Analysis": Layout(build_akoa, [KNEES]),
    "knees": Layout(images("knees/{side}/p{patient:02}_{slice}.png"), [KNEES]),
    "folders": Layout(images("folders/{side}/p{patient:02}/{slice}.png"), [KNEES]),
    "persons": Layout(images("persons/p{patient:02}/{side}/{slice}.png"), [KNEES]),
    "joints": Layout(partial(write_joints, "joints/{side}/p{patient:02}/{slice}.png"), [JOINTS]),
    "visits": Layout(
        images("visits/p{patient:02}/{visit}/{side}/{slice}.png", visits=("00m", "12m")), [VISITS]
    ),
    "oai": Layout(build_oai_images, [KNEES, GRADES]),
    "flat": Layout(images("flat/p{patient:02}_{side}_{slice}.png", sides=UPPER), [KNEES]),
    "dess": Layout(build_dess, [KNEES]),
    "mine": Layout(
        images("mine/{patient}_{side}_{slice:03}.png", sides="LR", patients=range(12, 20)),
        [REFUSED, KNEES],
    ),
    "cases": Layout(partial(write_joints, "cases/{side}/case{patient:03}/{slice}.png"), [JOINTS]),
    "numbered": Layout(
        images("numbered/{side}/{slice:03}.png", slices=range(160)),
        [Found(8, {"left": 4, "right": 4})],
    ),
    "released": Layout(build_released, [RELEASED, RELEASED]),
    "scans": Layout(
        partial(write_volumes, "scans/p{patient:02}_{side}.nii.gz", sides=UPPER), [KNEES, KNEES]
    ),
    "slices": Layout(build_slices, [KNEES]),
    "headers": Layout(build_dicom, [KNEES]),
    "axial": Layout(build_mrnet, [Found(8, {"0": 4, "1": 4})]),
    "MRNet-v1.0": Layout(build_mrnet, [Found(16, {"0": 8, "1": 8})]),
    "00m": Layout(build_oai, [REFUSED, KNEES, GRADES]),
    "manifest.csv": Layout(build_manifest, [JOINTS]),
    "grades.csv": Layout(build_grades, [Found(9, {"0": 3, "1": 3, "2": 3})]),
    "aarhus-bergen": Layout(build_sites, [KNEES]),
    "xray": Layout(build_xray, [GRADES]),
    "export": Layout(build_hospital, [Found(8, {"no": 6, "yes": 6})]),
    "bids": Layout(build_bids, [Found(8, {"case": 4, "control": 4})]),
}


# ---- the page ------------------------------------------------------------------------------------


def data_of(line: str) -> str:
    """What a line of the page reads: the last folder of its path."""
    words = shlex.split(line, comments=True)
    data = words[words.index("--data-dir") + 1] if "--data-dir" in words else words[2]
    return data.rpartition("/")[2]


def run(line: str) -> int:
    """A line of the page, of train.py with a small model and for one step. Returns its exit code"""
    _, program, *words = shlex.split(line, comments=True)
    main, more = PROGRAMS[program]
    return main([*words, *more])


def listed(line: str) -> list[Slice]:
    """The labelled slices that a line reads."""
    _, program, *words = shlex.split(line, comments=True)
    parse = {"train.py": parse_args, "dataset.py": dataset.parse_args}[program]
    args = parse(words)
    return dataset.list_labelled(args.data_dir, args.classes, dataset.options_of(args)).slices


def test_every_line_of_the_page_is_tried():
    counts = Counter(map(data_of, LINES))
    assert counts == {name: len(layout.lines) for name, layout in LAYOUTS.items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_read_by_the_lines_of_the_page(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    layout = LAYOUTS[name]
    layout.build()
    read = []
    for line, expected in zip([x for x in LINES if data_of(x) == name], layout.lines, strict=True):
        capsys.readouterr()
        code = run(line)
        output = "".join(capsys.readouterr())
        if isinstance(expected, int):
            assert code == expected, output
            continue
        assert code == 0, output
        slices = listed(line)
        read += slices
        scans = {s.scan: s for s in slices}.values()
        assert Counter(s.label for s in scans) == expected.scans
        assert len({s.patient for s in slices}) == expected.patients
    for path, text in FILES:
        if path.split("/")[0] == name:
            check_file(path, text, read)


def check_file(path: str, text: str, slices: list[Slice]) -> None:
    """Whether a path of the page is there, and is what the page says: patient p01, left, slice 7"""
    assert Path(path).exists(), path
    if match := re.match(r"patient (\w+), (\w+)(?:, slice (\d+))?", text):
        of_path = [s for s in slices if s.source == path]
        assert (match[1], match[2]) in {(s.patient, s.label) for s in of_path}, path
        assert match[3] is None or {s.number for s in of_path} == {int(match[3])}


def test_tables_of_the_page_are_those_that_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build_manifest()
    build_grades()
    written = Path("manifest.csv").read_text("utf-8"), Path("grades.csv").read_text("cp1252")
    *blocks, corrected = [block for language, block in BLOCKS if language == "csv"]
    for block, text in zip(blocks, written, strict=True):
        assert text.startswith(block)
    for scan in ("left/p01", "left/p07", "right/p12"):
        Path("knees", scan).mkdir(parents=True)
        Image.new("L", (4, 4)).save(f"knees/{scan}/0.png")
    Path("corrected.csv").write_text(corrected)
    found = list_slices("knees", options=Options(labels=[Path("corrected.csv")])).slices
    labels = {s.scan: s.label for s in found}
    assert labels == {"left/p01": "left", "left/p07": "right", "right/p12": ""}


def test_message_of_the_page_is_what_the_program_prints(tmp_path, monkeypatch, capsys):
    """How patients are asked for; the pattern in it, as it is typed, reads the data."""
    monkeypatch.chdir(tmp_path)
    LAYOUTS["mine"].build()
    line = next(line for line in LINES if data_of(line) == "mine")
    run(line)
    output = "".join(capsys.readouterr())
    (quoted,) = [text for _, text in BLOCKS if text.startswith("train.py: ")]
    assert quoted in output
    assert run(line + re.search(r" --name-pattern '.*'", quoted)[0]) == 0


def test_run_with_tables_of_labels_is_recorded_and_resumed(tmp_path, monkeypatch, capsys):
    """Their paths are a list, which args.json must hold."""
    monkeypatch.chdir(tmp_path)
    build_oai_images()
    line = next(line for line in LINES if data_of(line) == "oai" and "--labels" in line)
    words = [*shlex.split(line)[2:], *TINY, "--epochs", "1", "--output-dir", "run"]
    assert train.main(words) == 0
    capsys.readouterr()
    assert train.main(["--resume", "run", "--epochs", "2", "--labels", "kxr.txt"]) == 0
    assert "16 scans, 8 patients" in capsys.readouterr().out
    # It may lie elsewhere now, and must say the same.
    table = tmp_path / "kxr.txt"
    other = table.read_text().splitlines()
    other[1:3] = [line[:-1] + str(2 - int(line[-1])) for line in other[1:3]]
    (tmp_path / "other.txt").write_text("\n".join(other) + "\n")
    code = train.main(["--resume", "run", "--epochs", "3", "--labels", "other.txt"])
    assert code == 2 and "other labels, names or subsets" in capsys.readouterr().err
