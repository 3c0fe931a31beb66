"""What is read of the machine around a process, from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

from holdfast.progress.surroundings import look_around


def put(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_memory_pressure_and_limits_are_told(tmp_path: Path) -> None:
    pressure = "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=3\n"
    put(tmp_path, proc__meminfo="MemTotal:  100 kB\nMemAvailable:  40 kB\nCached: 1 kB\n")
    put(tmp_path, proc__pressure__memory=pressure, proc__self__cgroup="0::/pod\n")
    (tmp_path / "sys/fs/cgroup/pod").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/pod/memory.max").write_text("max\n")
    seen = look_around(tmp_path)
    assert seen["memory"] == {"MemTotal": "100 kB", "MemAvailable": "40 kB"}
    assert seen["pressure"]["memory"]["full"] == {"avg10": 0.5, "avg60": 0.0, "avg300": 0.0, "total": 3.0}
    assert seen["control_group"] == {"memory.max": "max"}


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    seen = look_around(tmp_path)
    assert (seen["memory"], seen["pressure"], seen["control_group"]) == ({}, {}, {})
