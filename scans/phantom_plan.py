"""Who of the synthetic patients is scanned when and on which side: names as in AKOA, no pictures.

plan_scans(24)[0]   # Scan(number=0, patient=..., side="right", stem="OAI9..._RIGHT.nii.gz")
"""

from typing import NamedTuple

import numpy as np

from common.program import UserError

# What AKOA holds: scans by side, and how many of them repeat another one's patient, visit and side,
# or spell their side oddly. Other numbers of patients get these in proportion.
AKOA_PATIENTS = 101
AKOA_SCANS = {"right": 273, "left": 194}
AKOA_REPEATS = {"right": 23, "left": 17}
AKOA_ODD = {"right": 9, "left": 3}
SPELLINGS = {"right": ("Right", "right", "R_I_G_H_T"), "left": ("Left", "left", "L_E_F_T")}
VISITS = ("BaseLine", "12Month", "24Month", "36Month", "48Month", "72Month", "96Month")


class Scan(NamedTuple):
    """One knee imaged once: its running number, and its file name up to the slice number."""

    number: int
    patient: int
    side: str
    stem: str


def plan_scans(patients: int = AKOA_PATIENTS, seed: int = 0, balanced: bool = False) -> list[Scan]:
    """Decide who was scanned when and on which side, and name the files; draws no picture.

    balanced: as many left knees as right ones, so that to say one side always is right for half.
    Raises UserError unless 3 <= patients <= 10,000.
    """
    if not 3 <= patients <= 10_000:
        raise UserError(f"patients must be from 3 to 10000, not {patients}")
    rng = np.random.default_rng([seed, patients])
    identities = rng.choice(1_000_000, patients, replace=False)
    share = patients / AKOA_PATIENTS
    scans = []
    for side, other_only in (("right", 7), ("left", 3)):
        like = "left" if balanced else side
        count = round(AKOA_SCANS[like] * share)
        repeats = round(AKOA_REPEATS[like] * share)
        # One patient in eight had the other knee alone scanned. The rest have this one scanned at
        # the first visit, and at later ones as they come.
        members = [index for index in range(patients) if index % 8 != other_only]
        later = [(index, visit) for index in members for visit in VISITS[1:]]
        rng.shuffle(later)
        visits = ([(index, VISITS[0]) for index in members] + later)[: count - repeats]
        visits += [visits[i] for i in rng.choice(len(visits), repeats, replace=False)]
        spelled = [side.upper()] * count
        odd = max(1, round(AKOA_ODD[like] * share))
        for turn, i in enumerate(rng.choice(count, odd, replace=False)):
            spelled[i] = SPELLINGS[side][turn % 3]
        for (index, visit), word in zip(visits, spelled, strict=True):
            # The running number makes the hexadecimal tag, hence the name, unique.
            tag = (len(scans) * 65_537 + int(rng.integers(65_537))) % 16**5
            name = f"OAI9{identities[index]:06d}_{visit}_3_{tag:05x}_SAG_3D_DESS_WE_{word}.nii.gz"
            scans.append(Scan(len(scans), index, side, name))
    return scans
