"""The volumes of a folder, by their headers: files, and series of DICOM files.

find_volumes("p01", os.listdir("p01"))      # all of them, and what is wrong with others
open_volume("p01_RIGHT.nii.gz")             # one
"""

import os
from pathlib import Path

from scans import names
from scans.dicom import Volumes, find_series, problem_of
from scans.slices import Options, Volume
from scans.volumes import VolumeError, check_volume, plan_slicing, read_header


def find_volumes(folder: str, files: list[str], options: Options = Options()) -> Volumes:
    """The volumes among the files of one folder, by their headers; pixels are not read.

    Raises:
        MissingPackage: there are such files, but SimpleITK is not installed.
    """
    headers, problems, found = [], [], []
    for name in sorted(filter(names.is_volume_name, files)):
        try:
            headers.append(read_header(os.path.join(folder, name)))
        except VolumeError as error:
            problems.append(problem_of(error))
    series = find_series(folder, files)
    for volume in [*headers, *series.volumes]:
        try:
            check_volume(volume)
            found.append(plan_slicing(volume, options))
        except VolumeError as error:
            problems.append(problem_of(error))
    return Volumes(found, [*problems, *series.problems])


def open_volume(path: str | Path, options: Options = Options()) -> Volume:
    """One volume, given by its file or its DICOM folder. Raises VolumeError if there is none."""
    path = os.fspath(path)
    is_folder = os.path.isdir(path)
    folder, files = (path, os.listdir(path)) if is_folder else os.path.split(path)
    found = find_volumes(folder, files if is_folder else [files], options)
    if found.volumes:
        return found.volumes[0]
    for problem in found.problems:
        raise VolumeError(problem.path, problem.text)
    raise VolumeError(path, "no image and no volume, or no such file")
