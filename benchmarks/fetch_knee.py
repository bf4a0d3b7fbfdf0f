"""Fetch a real knee to test scans/dicom.py on: the source package `mskt` 0.1.22 from PyPI (92 MB).

    python benchmarks/fetch_knee.py data/mskt
    PERCEIVER_MSKT=data/mskt/mskt-0.1.22 pytest tests/scans/test_volumes.py

Its data/ holds a sagittal DICOM series (8 echoes x 24 slices) and label maps of knees in NRRD.
Exit codes: 0 fetched, 1 not there or not the file that it should be, 2 bad arguments.
"""

import argparse
import hashlib
import io
import re
import subprocess
import sys
import tarfile
import urllib.parse
import urllib.request

NAME = "mskt-0.1.22.tar.gz"
SHA256 = "b49ffa4924337e28dc08af2e7efab399e9248c9e7db477e593d5d6e254757308"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", metavar="DIR", help="for its folder mskt-0.1.22")
    folder = parser.parse_args().folder
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    index = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    page = f"{(index or 'https://pypi.org/simple').rstrip('/')}/mskt/"
    try:
        with urllib.request.urlopen(page, timeout=60) as answer:
            links = re.findall(r'href="([^"#]*)', answer.read().decode())
        link = next((link for link in links if link.endswith(NAME)), NAME)
        with urllib.request.urlopen(urllib.parse.urljoin(page, link), timeout=600) as answer:
            content = answer.read()
    except OSError as error:
        print(f"fetch_knee.py: {page}: {error}", file=sys.stderr)
        return 1
    if hashlib.sha256(content).hexdigest() != SHA256:
        print(f"fetch_knee.py: {link}: not the file that was expected (sha256)", file=sys.stderr)
        return 1
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        # The data filter refuses paths and links that lead out of the folder.
        archive.extractall(folder, filter="data")
    print(f"PERCEIVER_MSKT={folder}/{NAME.removesuffix('.tar.gz')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
