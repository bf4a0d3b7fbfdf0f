"""Synthetic knees with the file names, number and size of the OAI AKOA images.

    python -m scans.phantom DIR                    # 467 scans x 40 slices of 101 patients, as AKOA
    python -m scans.phantom DIR --patients 24      # the same in small
    python -m scans.phantom DIR --seed 1 --workers 8
    python -m scans.phantom DIR --hard             # the side shows in the order of slices alone

These pictures are SYNTHETIC. They stand in for the AKOA images, which are not public, so that
every program here can be run, timed and tested. No score on them says anything about real knees.

A knee is some forty solids (ellipsoids and tubes, in mm) painted over each other, slice by slice,
in the grey values of a fat-suppressed DESS sequence. Anatomy belongs to the patient: it is the same
at all visits and nearly the same in both knees. Pose, contrast, coil shading and noise belong to
the scan. A left knee is drawn mirrored front to back, within the slice. Slice 0 is the inner
(medial) end of either knee. Telling left from right is made hard for a linear model on pixels by
pose (see SWAY), not by noise.

--hard: as scanners store knees, all from the patient's right to the left. Both sides are drawn
facing one way, and slice 0 is the outer (lateral) end of a right knee and the inner end of a left
one. So each slice alone is as likely of either side; only their order, the third axis, tells it.
There are as many left knees as right ones.

Exit codes: 0 done, 1 a full disk, 2 unusable arguments, 130 / 143 stopped by SIGINT / SIGTERM; a
folder is written whole or not at all.
"""

import gc
import signal

if __name__ == "__main__":  # while NumPy is imported
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of a Ctrl-C
    gc.disable()  # run_program goes on with that

import argparse
import math
import multiprocessing
import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from common import signals
from common.files import whole_folder
from common.program import Parser, UserError, positive_int, run_program
from scans.phantom_plan import AKOA_PATIENTS, Scan, plan_scans

LITTER = ("Thumbs.db", ".DS_Store", "desktop.ini")

SLICES, WIDTH, HEIGHT = 40, 260, 228
PIXEL, SLICE_STEP = 0.6, 2.05  # mm
GRID = (152, 173)  # solids are painted on 2/3 of the pixels a side, then enlarged: twice as fast

# fmt: off
# Mean and standard deviation over patients: mm, except `size` and `*_slope` (ratios).
ANATOMY = {
    "size": (1.0, 0.05), "skin_fat": (6.5, 1.8), "cartilage": (2.4, 0.35), "effusion": (2.5, 1.2),
    "thigh_front": (52.0, 3.5), "thigh_back": (58.0, 3.5),
    "calf_front": (42.0, 3.5), "calf_back": (59.0, 3.5),
    "femur_shift": (0.0, 2.0), "femur_slope": (0.02, 0.05), "femur_shaft": (13.5, 1.2),
    "condyle_length": (28.0, 2.0), "condyle_height": (19.5, 1.2), "trochlea": (22.0, 1.5),
    "tibia_shift": (0.0, 2.0), "tibia_slope": (0.05, 0.05), "tibia_shaft": (13.0, 1.2),
    "plateau": (25.0, 1.5), "plateau_slope": (0.10, 0.04), "fibula_back": (-19.0, 2.5),
    "patella_front": (44.0, 1.5), "patella_up": (22.0, 4.0),
    "patella_half_depth": (9.5, 0.9), "patella_half_length": (20.0, 2.0),
    "hamstrings": (17.0, 2.0), "quadriceps": (20.0, 2.5), "calf": (17.0, 2.0),
    "fat_pad": (14.0, 1.5),
}
# The same over scans: mm, degrees, and logarithms of factors.
ACQUISITION = {
    "forward": (0.0, 4.0), "up": (0.0, 4.0), "outward": (0.0, 1.0), "lean": (0.0, 4.0),
    "flexion_slope": (0.0, 0.04), "log_scale": (0.0, 0.04),
    "log_gamma": (0.0, 0.15), "log_gain": (0.0, 0.12), "log_noise": (-3.7, 0.25),
}
# Grey values, 0 to 1. Each scan multiplies each by a factor whose logarithm has TISSUE_SPREAD.
TISSUES = {
    "skin": 0.45, "fat": 0.28, "fascia": 0.16, "muscle": 0.42, "marrow": 0.22, "cortex": 0.05,
    "cartilage": 0.72, "fluid": 0.95, "meniscus": 0.14, "tendon": 0.09, "vessel": 0.70,
}
# fmt: on
TISSUE_SPREAD = 0.12
SHADING = 0.2  # standard deviation of each term of the coil's shading, from centre to edge
# While it is scanned the leg sways to and fro: amplitudes, and slices a period. No patient moves as
# much: this is what makes the task hard for a linear model on pixels (97 % of the slices of unseen
# patients). Each scan shows much of it, so that a model that sees shape can learn it from a few
# patients; pose that differs between scans alone could not be learned from so few.
SWAY = {"forward": 15.0, "up": 9.5, "lean": 21.5}  # mm, mm, degrees
SWAY_PERIOD = (10.0, 20.0)


def draw(table: dict[str, tuple[float, float]], normals: np.ndarray) -> dict[str, float]:
    """Turn standard normals, one a row of the table, into its quantities; tails are cut at 2.2."""
    cut = np.clip(normals, -2.2, 2.2)
    return {
        name: mean + spread * float(z)
        for (name, (mean, spread)), z in zip(table.items(), cut, strict=True)
    }


# The solids are functions of a point (a, s, z): mm forward, up and outward of the joint's middle.
# They return the depth below the surface in mm, negative outside; a and s are arrays, z a number.


def ellipsoid(a, s, z, centre, radii, tilt: float = 0.0) -> np.ndarray:
    """Depth in an ellipsoid: (forward, up, outward) in mm; tilt in degrees lifts its front end."""
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    u = (cos * (a - centre[0]) + sin * (s - centre[1])) / radii[0]
    v = (cos * (s - centre[1]) - sin * (a - centre[0])) / radii[1]
    # Scaled so that the depth is right where the outline is flattest.
    return min(radii[:2]) * (1 - np.sqrt(u**2 + v**2 + ((z - centre[2]) / radii[2]) ** 2))


def tube(a, z, middle, width, outward, centre: float = 0.0) -> np.ndarray:
    """Depth in a rod along the leg, whose middle and half-axes may vary with height."""
    return width - np.sqrt((a - middle) ** 2 + (width / outward * (z - centre)) ** 2)


def paint(image: np.ndarray, depth: np.ndarray, grey: float | np.ndarray, edge: float = 1.0):
    """Lay a tissue over the image where depth > 0, in place, with an edge this many mm wide."""
    if depth.max() > -edge / 2:  # most solids miss most slices
        image += np.clip(depth / edge + 0.5, 0, 1) * (grey - image)


def paint_bone(image: np.ndarray, depth: np.ndarray, grey: dict, texture: np.ndarray):
    """A dark shell of cortical bone around marrow, which fat suppression leaves dark grey."""
    paint(image, depth, grey["cortex"])
    paint(image, depth - 1.4, grey["marrow"] * texture)


class Solids(NamedTuple):
    """Depths below the surfaces of what a slice shows, in mm, negative outside; (height, width)."""

    skin: np.ndarray
    condyles: np.ndarray  # the joint surface of the femur
    femur: np.ndarray
    tibia: np.ndarray
    tibial: np.ndarray  # all of the bone that is the tibia
    plateau: np.ndarray  # height of its upper end
    fibula: np.ndarray
    patella: np.ndarray


def solids(k: dict[str, float], a: np.ndarray, s: np.ndarray, z: float) -> Solids:
    """The leg and its bones; arguments as of `knee_slice`."""
    # The leg: front and back of the skin, from calf to thigh.
    upper = 1 / (1 + np.exp(-(s - 5) / 14))
    front = k["calf_front"] + (k["thigh_front"] - k["calf_front"]) * upper
    back = k["calf_back"] + (k["thigh_back"] - k["calf_back"]) * upper
    back = back - 9 * np.exp(-(((s - 5) / 22) ** 2))  # the hollow of the knee
    leg = tube(a, z, (front - back) / 2, (front + back) / 2, 62)
    knee = (k["patella_front"] - 26, k["patella_up"] - 10, 1)
    front_of_knee = ellipsoid(a, s, z, knee, (42, 62, 48))

    # Femur: a shaft that flares into two condyles, joined in front by the trochlea.
    flare = np.exp(-np.maximum(s - 18, 0) / 17)
    middle = k["femur_shift"] + (k["femur_slope"] + k["flexion_slope"]) * (s - 20)
    shaft = tube(a, z, middle, k["femur_shaft"] + 7 * flare, 15 + 25 * flare)
    length, height = k["condyle_length"], k["condyle_height"]
    condyles = [
        ellipsoid(a, s, z, (x + k["femur_shift"], height + lift, at), (r, height + more, thick))
        for x, lift, at, r, more, thick in (
            (-4, 0.5, -22, length, 0, 16),
            (-4, 1.0, 22, length, -0.5, 17),
            (-14, 2, -22, 20, 1, 13),
            (-14, 2, 22, 19, 0.5, 13),
        )
    ]
    notch = (s - 15 + 0.5 * (a - k["femur_shift"])) / math.hypot(1, 0.5)  # its roof rises backwards
    trochlea = ellipsoid(a, s, z, (9 + k["femur_shift"], 24, 2), (k["trochlea"], 20, 34))
    condyle = np.maximum.reduce([trochlea, *condyles])

    # Tibia: a plateau, cut flat and sloping backwards, on a shaft whose front edge is straight.
    flare = np.exp(np.minimum(s + 5, 0) / 16)
    width = k["tibia_shaft"] + (k["plateau"] - k["tibia_shaft"]) * flare
    edge = 21 + k["tibia_shift"] + (k["tibia_slope"] - k["flexion_slope"]) * s
    tibia = tube(a, z, edge - width, width, 14 + 25 * flare)
    plateau = -4.5 + k["plateau_slope"] * (a + 4)
    tubercle = ellipsoid(a, s, z, (19 + k["tibia_shift"], -30, 2), (7, 13, 9), 10)
    spine = ellipsoid(a, s, z, (-4 + k["tibia_shift"], -5, 0), (9, 6, 7))
    neck = np.exp(np.minimum(s + 14, 0) / 10)
    fibula = tube(a, z, k["fibula_back"] + 0.05 * (s + 14), 5 + 4 * neck, 5 + 4 * neck, 33)
    centre = (k["patella_front"], k["patella_up"], 2)
    radii = (k["patella_half_depth"], k["patella_half_length"], 22)
    return Solids(
        skin=np.maximum(leg, front_of_knee),
        condyles=condyle,
        femur=np.maximum(condyle, np.minimum(shaft, notch)),
        tibia=tibia,
        tibial=np.maximum.reduce([np.minimum(tibia, plateau - s), tubercle, spine]),
        plateau=plateau,
        fibula=fibula,
        patella=ellipsoid(a, s, z, centre, radii, -4),
    )


def paint_soft_tissue(
    image: np.ndarray,
    k: dict[str, float],
    grey: dict[str, float],
    skin: np.ndarray,
    grain: np.ndarray,
    at: tuple[np.ndarray, np.ndarray, float],
) -> None:
    """Skin, fat, muscles, vessels, and in front tendons, fat pad and fluid; at: (a, s, z)."""
    a, s, z = at
    ham, quad, calf = k["hamstrings"], k["quadriceps"], k["calf"]
    muscles = [
        ellipsoid(a, s, z, (-40, 58, -24), (ham, 62, 24), 3),  # inner hamstrings
        ellipsoid(a, s, z, (-36, 62, 26), (ham, 56, 22), 5),  # outer
        ellipsoid(a, s, z, (-24, 84, 2), (14, 50, 30)),
        ellipsoid(a, s, z, (26, 66, -26), (quad, 46, 28), -6),  # vastus, inner and outer
        ellipsoid(a, s, z, (24, 74, 26), (quad, 46, 28), -6),
        ellipsoid(a, s, z, (24, 80, 0), (quad - 4, 36, 24), -4),
        ellipsoid(a, s, z, (-20, -62, 2), (15, 48, 40), 3),  # soleus
        ellipsoid(a, s, z, (-40, -40, -21), (calf, 62, 26), -2),  # calf, inner and outer head
        ellipsoid(a, s, z, (-39, -44, 22), (calf, 58, 24), -2),
        ellipsoid(a, s, z, (12, -70, 30), (16, 52, 22), 3),  # front of the shin
    ]
    bend = 4 * np.sin(s / 22)
    vessels = [tube(a, z, -33 + bend, 2.6, 2.6, 4), tube(a, z, -39 + 0.6 * bend, 2.0, 2.0, -1)]
    tip = k["patella_up"] - k["patella_half_length"] + 2
    slope = (k["patella_front"] - 29) / (tip + 30)
    ligament = tube(a, z, k["patella_front"] + 3 + slope * (s - tip), 2.6, 13, 2)
    top = k["patella_up"] + k["patella_half_length"] - 4
    quadriceps_tendon = tube(a, z, k["patella_front"] + 1 - 0.12 * (s - top), 3.2, 15, 1)
    fat_pad = ellipsoid(a, s, z, (33, -6, 2), (k["fat_pad"], 15, 26))
    pouch = ellipsoid(a, s, z, (k["patella_front"] - 12, 46, 2), (max(k["effusion"], 1), 13, 17), 8)

    paint(image, skin, grey["skin"])
    paint(image, skin - 1.8, grey["fat"] * (1 + 0.06 * grain))
    inside = skin - k["skin_fat"]
    for muscle in muscles:
        depth = np.minimum(muscle, inside)
        paint(image, depth, grey["fascia"])
        paint(image, depth - 0.9, grey["muscle"] * (1 + 0.12 * grain))
    for vessel in vessels:
        paint(image, vessel, grey["vessel"])
    paint(image, fat_pad, grey["fat"] * (1.2 + 0.12 * grain), 2.0)
    paint(image, np.minimum(pouch, s - 28), grey["fluid"])
    paint(image, np.minimum(quadriceps_tendon, s - top), grey["tendon"])
    paint(image, np.minimum(ligament, np.minimum(tip + 3 - s, s + 36)), grey["tendon"])


def knee_slice(
    anatomy: dict[str, float], grey: dict[str, float], a: np.ndarray, s: np.ndarray, z: float
) -> np.ndarray:
    """Paint one slice, from the skin inwards, without shading and noise.

    Args:
        anatomy: a value for each row of ANATOMY, and the scan's flexion_slope.
        grey: a value for each row of TISSUES.
        a, s: mm in front of and above the middle of the joint at each pixel, (height, width).
        z: mm outward (lateral) from that middle.
    """
    bones, cartilage = solids(anatomy, a, s, z), anatomy["cartilage"]
    # Grain of muscle and marrow: two waves that turn into one another from slice to slice.
    waves = [
        np.sin(a * k1 + s * k2) * np.sin(s * k3 - a * k4)
        for k1, k2, k3, k4 in ((0.42, 0.09, 0.11, 0.31), (0.23, 0.17, 0.19, 0.47))
    ]
    grain = math.cos(z / 5) * waves[0] + math.sin(z / 5) * waves[1]
    image = np.zeros_like(a)
    paint_soft_tissue(image, anatomy, grey, bones.skin, grain, (a, s, z))

    # Joint: the capsule, ligaments that cross in the notch, then cartilage, so that the bones it
    # covers leave only its layer showing.
    paint(image, ellipsoid(a, s, z, (-5, 4, 0), (26, 13, 36)), grey["fat"] * 1.4, 3.0)
    paint(image, ellipsoid(a, s, z, (0, 5, 3), (15, 2.6, 6), -38), grey["tendon"])
    paint(image, ellipsoid(a, s, z, (-12, 5, -4), (15, 3.2, 6), 45), grey["tendon"])
    layer = cartilage * min(max((42 - abs(z)) / 12, 0), 1)  # thins out towards the sides
    paint(image, np.minimum(bones.condyles + layer, 32 - s), grey["cartilage"])
    surface = np.minimum(bones.tibia - 1, bones.plateau + layer - s)
    paint(image, np.minimum(surface, s - bones.plateau + 3), grey["cartilage"])
    # Each meniscus is a ring: two dark wedges where a slice cuts through it, one at its rim.
    reach = 17**2 - (abs(z) - 20) ** 2
    if reach > 0:
        horns = np.abs(np.abs(a + 4) - math.sqrt(reach))
        wedge = 6.5 - np.hypot(horns, 2.0 * (s - bones.plateau - 2.5))
        paint(image, np.minimum(wedge, bones.tibia + 3), grey["meniscus"])
    paint_bone(image, bones.femur, grey, 1 + 0.10 * grain)
    paint_bone(image, bones.tibial, grey, 1 + 0.10 * grain)
    paint_bone(image, np.minimum(bones.fibula, -13 - s), grey, 1 + 0.10 * grain)
    behind = anatomy["patella_front"] + 1 - a
    paint(image, np.minimum(bones.patella + cartilage, behind), grey["cartilage"])
    paint_bone(image, bones.patella, grey, 1 + 0.10 * grain)
    return image


def render_scan(scan: Scan, seed: int, hard: bool = False) -> list[np.ndarray]:
    """Draw one scan: 40 slices, each (228, 260) uint8. The same arguments give the same pixels."""
    # The two knees share most of their anatomy: correlation 0.9.
    body = np.random.default_rng([seed, 1, scan.patient]).standard_normal((3, len(ANATOMY)))
    own = body[1] if scan.side == "right" else body[2]
    anatomy = draw(ANATOMY, np.sqrt(0.9) * body[0] + np.sqrt(0.1) * own)
    rng = np.random.default_rng([seed, 2, scan.number])
    pose = draw(ACQUISITION, rng.standard_normal(len(ACQUISITION)))
    anatomy["flexion_slope"] = pose["flexion_slope"]
    factors = np.exp(TISSUE_SPREAD * rng.standard_normal(len(TISSUES))).tolist()
    grey = {tissue: TISSUES[tissue] * f for tissue, f in zip(TISSUES, factors, strict=True)}

    # Pixel centres in mm, x to the right and y upwards, then in the knee's own axes.
    y, x = np.meshgrid(
        (0.5 - (np.arange(GRID[0]) + 0.5) / GRID[0]) * HEIGHT * PIXEL,
        ((np.arange(GRID[1]) + 0.5) / GRID[1] - 0.5) * WIDTH * PIXEL,
        indexing="ij",
    )
    x, y = x.astype(np.float32), y.astype(np.float32)
    towards_front = -x if scan.side == "right" or hard else x
    scale = anatomy["size"] * math.exp(pose["log_scale"])
    depths = (np.arange(SLICES) - (SLICES - 1) / 2) * SLICE_STEP + pose["outward"]
    if hard and scan.side == "right":
        depths = depths[::-1]

    # Coil shading: a random slope and bend in each direction of the picture.
    u, v = x / (WIDTH * PIXEL / 2), y / (HEIGHT * PIXEL / 2)
    terms = SHADING * rng.standard_normal(5).astype(np.float32)
    log_gain = terms[0] * u + terms[1] * v + terms[2] * u * v + terms[3] * u**2 + terms[4] * v**2
    gain = np.exp(log_gain + pose["log_gain"])
    noise, gamma = math.exp(pose["log_noise"]), math.exp(pose["log_gamma"])

    slices = []
    # Each of the three sways has its own phase and period.
    starts, periods = rng.uniform(0, 1, len(SWAY)), rng.uniform(*SWAY_PERIOD, len(SWAY))
    for number, z in enumerate(depths.tolist()):
        waves = np.sin(2 * np.pi * (starts + number / periods)).tolist()
        sway = {name: SWAY[name] * wave for name, wave in zip(SWAY, waves, strict=True)}
        forward = (towards_front - pose["forward"] - sway["forward"]) / scale
        up = (y - pose["up"] - sway["up"]) / scale
        lean = math.radians(pose["lean"] + sway["lean"])
        a = math.cos(lean) * forward - math.sin(lean) * up
        s = math.sin(lean) * forward + math.cos(lean) * up
        image = knee_slice(anatomy, grey, a, s, z)
        # Magnitude images have Rician noise: the length of a complex signal with Gaussian noise.
        real, imaginary = noise * rng.standard_normal((2, *GRID), dtype=np.float32)
        magnitude = np.hypot(image * gain + real, imaginary)
        bright = 255 * np.clip(magnitude, 0, 1) ** gamma
        enlarged = Image.fromarray(bright.astype(np.uint8)).resize((WIDTH, HEIGHT), Image.BICUBIC)
        slices.append(np.asarray(enlarged))
    return slices


def write_scan(scan: Scan, folder: Path, seed: int, hard: bool) -> None:
    """Write the slices of one scan as PNGs, RGB with equal channels, slices 0 to 39."""
    for number, image in enumerate(render_scan(scan, seed, hard)):
        picture = Image.fromarray(image).convert("RGB")
        picture.save(folder / f"{scan.stem}_{number}.png", compress_level=2)


def prepare_worker() -> None:
    """Leave Ctrl-C to the parent, which ends this process, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def write_phantoms(
    directory: str | Path,
    patients: int = AKOA_PATIENTS,
    seed: int = 0,
    workers: int | None = None,
    hard: bool = False,
) -> None:
    """Fill a new or empty directory with synthetic scans, and some litter as in AKOA.

    The files appear under that name only when all are written. Pixels depend on `seed`, `patients`
    and `hard`, not on `workers`, the number of processes (default: one a core). With more than one,
    a program that calls this needs the usual `if __name__ == "__main__":`.

    Raises:
        UserError: an unusable number of patients or workers, or a negative seed.
        FileExistsError: the directory holds something already, or is a file.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise UserError(f"workers must be 1 or more, not {workers}")
    if seed < 0:
        raise UserError(f"seed must be 0 or more, not {seed}")
    scans = plan_scans(patients, seed, balanced=hard)
    with (
        whole_folder(Path(directory)) as unfinished,
        tqdm(total=len(scans), desc="drawing knees", unit="scan", disable=None) as progress,
    ):
        task = partial(write_scan, folder=unfinished, seed=seed, hard=hard)
        if workers == 1:
            for scan in scans:
                signals.check()
                task(scan)
                progress.update()
        else:
            # Spawned, not forked: a fork of a program whose threads (torch) hold locks can hang.
            context = multiprocessing.get_context("spawn")
            with context.Pool(min(workers, len(scans)), initializer=prepare_worker) as pool:
                for _ in pool.imap_unordered(task, scans):
                    signals.check()
                    progress.update()
        for name in LITTER:
            (unfinished / name).write_bytes(b"not an image")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m scans.phantom",
        description="Write synthetic knees with the file names, number and size of AKOA.",
    )
    add = parser.add_argument
    add("directory", type=Path, metavar="DIR", help="new or empty directory to fill")
    add("--patients", type=int, default=AKOA_PATIENTS, metavar="N", help="from 3 to 10000")
    add("--seed", type=int, default=0, metavar="N", help="another one draws other knees")
    add("--hard", action="store_true", help="the side shows in the order of slices alone")
    add("--workers", type=positive_int, metavar="N", help="processes (default: one a core)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    write_phantoms(args.directory, args.patients, args.seed, args.workers, args.hard)
    return 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with signals.listening("python -m scans.phantom"):
        return run_program(run, args, "python -m scans.phantom")


if __name__ == "__main__":
    sys.exit(main())
