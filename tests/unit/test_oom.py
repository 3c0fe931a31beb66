"""Whether a process was killed because memory ran out."""

import pytest

from holdfast.progress.processes import oom_kills, why_killed


def lay_out(root, **files):
    for name, text in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_kills_are_counted_in_the_group_of_this_process_and_on_the_machine(tmp_path):
    lay_out(tmp_path, proc__vmstat="pgfault 7\noom_kill 5\n", proc__self__cgroup="0::/pod/a\n")
    lay_out(tmp_path / "sys/fs/cgroup/pod/a", **{"memory.events": "high 0\noom 3\noom_kill 2\n"})
    assert oom_kills(tmp_path) == {"in this container": 2, "on this machine": 5}


def test_the_first_version_of_groups_counts_elsewhere(tmp_path):
    lay_out(tmp_path, proc__self__cgroup="3:cpu:/x\n4:memory:/pod\n")
    lay_out(tmp_path / "sys/fs/cgroup/memory/pod", **{"memory.oom_control": "oom_kill_disable 0\noom_kill 1\n"})
    assert oom_kills(tmp_path) == {"in this container": 1}


def test_where_nobody_counts_nothing_is_known(tmp_path):
    assert oom_kills(tmp_path) == {}


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"here": 1}, {"here": 3}, "most likely by the kernel: memory ran out here, 2 processes killed meanwhile"),
        ({"here": 1}, {"here": 1}, "not because memory ran out: the kernel counted no such kill"),
        ({}, {}, "perhaps by the kernel because memory ran out: the kernel's count of such kills is not readable"),
        ({}, {"here": 4}, "not because memory ran out: the kernel counted no such kill"),
    ],
)
def test_two_counts_say_whether_memory_ran_out_between_them(before, after, words):
    assert why_killed(before, after) == words
