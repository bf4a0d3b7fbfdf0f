"""What the program that kills the others takes for a fault."""

import pytest

from benchmarks.kills import unreadable


@pytest.mark.parametrize(
    "text, fault",
    [
        ("path,label\na.png,left\n", ""),
        ("path,label\na.png,left\nb.png,right\n", ""),
        ("path,label\na.png,right\n", "its 1 rows are not the first ones"),
        ("path,label\nb.png,right\n", "its 1 rows are not the first ones"),
        ("path,label\n", "its 0 rows are not the first ones"),
        ("path,label\na.png,left\nb.pn", "its last row is cut"),
    ],
)
def test_rows_so_far_must_be_the_first_rows_of_the_whole_table(tmp_path, text, fault):
    for name in ("whole", "killed"):
        (tmp_path / name / "predictions").mkdir(parents=True)
    complete = "path,label\na.png,left\nb.png,right\nc.png,left\n"
    (tmp_path / "whole/predictions/scans.csv").write_text(complete)
    (tmp_path / "killed/predictions/scans.partial.csv").write_text(text)
    found = unreadable(tmp_path / "killed", tmp_path / "whole")
    assert len(found) == bool(fault) and fault in "".join(found)
