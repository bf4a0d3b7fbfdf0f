"""How long the search for copies takes among many images, and whether it finds those planted.

    python benchmarks/copies.py                        # 100,000 images, 76 x 86
    python benchmarks/copies.py --images 10000

The images are slices of made-up scans: the 40 slices of one phantom, moved, their contrast changed,
under a smooth random field that is the scan's own. So neighbours within a scan are nearly alike,
and scans resemble each other as knees do. Copies are planted in other scans. The search runs in a
process of its own, whose memory is counted from after the images are loaded.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scans import phantom  # noqa: E402
from scans.images import resize  # noqa: E402

SLICES, HEIGHT, WIDTH = phantom.SLICES, 76, 86
EACH = 200  # planted copies of each kind

SEARCH = """
import json, resource, sys, time
import numpy as np, torch
from scans.copies import find_copies
def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
pixels = torch.from_numpy(np.load(sys.argv[1]))
scans = [str(i // int(sys.argv[2])) for i in range(len(pixels))]
before, started = memory(), time.perf_counter()
pairs = find_copies(pixels, scans)
print(json.dumps([time.perf_counter() - started, memory() - before, pairs]))
"""


def resized(image: Image.Image, factor: float) -> Image.Image:
    size = round(image.width * factor), round(image.height * factor)
    return image.resize(size, Image.Resampling.LANCZOS)


def compressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file)


KINDS = {
    "exact": lambda image: image,
    "a third": lambda image: resized(image, 1 / 3),
    "double": lambda image: resized(image, 2),
    "JPEG 30": compressed,
    "brighter": lambda image: image.point(lambda grey: grey + 1),
}


def make_images(count: int, seed: int = 0) -> np.ndarray:
    """(count, 1, 76, 86) uint8."""
    generator = torch.Generator().manual_seed(seed)
    knee = np.stack(phantom.render_scan(phantom.plan_scans(3)[0], seed))
    knee = F.interpolate(torch.from_numpy(knee)[:, None].float(), (HEIGHT, WIDTH), mode="area")
    images = np.empty((count, 1, HEIGHT, WIDTH), np.uint8)
    for start in range(0, count, SLICES):
        gain, size = (1 + 0.15 * torch.randn(2, generator=generator)).tolist()
        moved = torch.randint(-6, 7, (2,), generator=generator).tolist()
        field = torch.randn(1, 1, 6, 5, 6, generator=generator)
        field = F.interpolate(field, (SLICES, HEIGHT, WIDTH), mode="trilinear")[0, 0, :, None]
        scan = gain * knee.roll(moved, dims=(2, 3)) + 25 * size * field
        scan += 4 * torch.randn(scan.shape, generator=generator)
        images[start : start + SLICES] = scan.clamp(0, 255).byte()[: count - start].numpy()
    return images


def plant(images: np.ndarray, seed: int = 0) -> dict[tuple[int, int], str]:
    """Overwrite images by copies of others, in place: (position, later position) -> kind."""
    rng = np.random.default_rng(seed)
    scans = rng.permutation(len(images) // SLICES)[: 2 * EACH * len(KINDS)].reshape(-1, 2)
    planted = {}
    for number, pair in enumerate(np.sort(scans, axis=1).tolist()):
        kind = list(KINDS)[number % len(KINDS)]
        first, later = (scan * SLICES + int(rng.integers(5, SLICES - 5)) for scan in pair)
        # Copied at the size of AKOA's files; then both are made as small as all others.
        image = Image.fromarray(images[first, 0])
        image = image.resize((phantom.WIDTH, phantom.HEIGHT), Image.Resampling.BICUBIC)
        images[first, 0] = resize(image, (HEIGHT, WIDTH))
        images[later, 0] = resize(KINDS[kind](image), (HEIGHT, WIDTH))
        planted[first, later] = kind
    return planted


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000, metavar="N")
    args = parser.parse_args()
    images = make_images(args.images)
    planted = plant(images)
    with tempfile.TemporaryDirectory() as scratch:
        np.save(Path(scratch, "images.npy"), images)
        command = [sys.executable, "-c", SEARCH, Path(scratch, "images.npy"), str(SLICES)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    seconds, memory, pairs = json.loads(done.stdout)
    found = set(map(tuple, pairs))
    print(
        f"{len(images):,} images in {seconds:.1f} s, {memory:.2f} GB beside them, "
        f"{os.cpu_count()} cores; {len(found - planted.keys())} pairs that were not planted"
    )
    for kind in KINDS:
        of_kind = {pair for pair, name in planted.items() if name == kind}
        print(f"{kind:>10}: {len(of_kind & found)} of {len(of_kind)} found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
