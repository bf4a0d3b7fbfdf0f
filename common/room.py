"""What room there is: memory of the machine, and free space where a folder is."""

import os
import shutil
from pathlib import Path


def memory() -> int:
    """Bytes of memory that there are in all; without end where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # Windows
        return 2**63


def free_space(folder: Path) -> int:
    """Bytes where a folder is, or would be made."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(nearest).free
