"""Tables of benchmarks/known_patients.py: which patients are trained on, and what is tested."""

from conftest import write_scan

from benchmarks.evidence import rows_of
from benchmarks.known_patients import write_tables


def test_both_tables_test_the_same_scans_and_train_on_as_many_of_as_many_patients(tmp_path):
    for patient in range(20):
        for side in ("LEFT", "RIGHT"):
            for visit in range(1 + patient % 3):
                write_scan(tmp_path, patient, side, slices=1, hash=visit)
    write_tables(tmp_path, 3)
    scans, knees, patients = {}, {}, {}
    for name in ("known", "unknown"):
        for subset in ("train", "test"):
            rows = [r for r in rows_of(tmp_path / f"{name}-3.csv") if r["subset"] == subset]
            scans[name, subset] = {row["scan"] for row in rows}
            knees[name, subset] = {(row["patient"], row["label"]) for row in rows}
            patients[name, subset] = {row["patient"] for row in rows}
    assert knees["known", "test"] <= knees["known", "train"]
    assert not patients["unknown", "test"] & patients["unknown", "train"]
    assert scans["known", "test"] == scans["unknown", "test"]
    assert scans["known", "test"] and not scans["known", "test"] & scans["known", "train"]
    known, unknown = scans["known", "train"], scans["unknown", "train"]
    assert abs(len(known) - len(unknown)) <= 4 and len(known & unknown) > 20
