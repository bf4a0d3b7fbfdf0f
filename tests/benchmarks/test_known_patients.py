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
    tested, trained, patients = {}, {}, {}
    for name in ("known", "unknown"):
        rows = rows_of(tmp_path / f"{name}-3.csv")
        of = {subset: [r for r in rows if r["subset"] == subset] for subset in ("train", "test")}
        tested[name] = {row["scan"] for row in of["test"]}
        trained[name] = {row["scan"] for row in of["train"]}
        patients[name] = {row["patient"] for row in of["train"]}
        tested_patients = {row["patient"] for row in of["test"]}
        if name == "unknown":
            assert not tested_patients & patients[name]
    several = {row["patient"] for row in rows if row["scan"].count("_00001_")} & tested_patients
    assert several and several <= patients["known"]
    assert tested["known"] == tested["unknown"] and not tested["known"] & trained["known"]
    counts = [len(trained["known"]), len(trained["unknown"])]
    assert max(counts) - min(counts) <= 4 and len(trained["known"] & trained["unknown"]) > 20
