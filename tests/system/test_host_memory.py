"""Memory is read within a container's limits, and work that does not fit is refused."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from lightx2v_sgmd.system import host_memory
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.host_memory import (
    available_gib,
    host_memory_gib,
    refuse_too_large,
    swap_gib,
)

GIB = 2**30


def write(folder: Path, **values: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the system's control groups."""
    monkeypatch.setattr(host_memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(host_memory, "_own_groups", lambda: {})
    monkeypatch.setattr(host_memory, "_SWAPS", tmp_path / "swaps")
    return tmp_path


def test_a_containers_limit_counts(groups: Path) -> None:
    whole = host_memory_gib()
    assert whole is not None and whole[0] >= whole[1] > 0
    write(groups, memory__max=GIB // 2, memory__current=GIB // 8)
    assert host_memory_gib() == (0.5, 0.375)
    write(groups, memory__max="max")
    assert host_memory_gib() is not None and host_memory_gib() != (0.5, 0.375)


def test_what_files_left_in_memory_is_available(groups: Path) -> None:
    stat = f"anon {GIB // 8}\ninactive_file {GIB // 8}\nactive_file {GIB // 8}\nshmem 5"
    write(groups, memory__max=GIB // 2, memory__current=GIB // 2, memory__stat=stat)
    assert host_memory_gib() == (0.5, 0.25)


def test_groups_of_version_1_and_of_parents_count(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = 2**63 - 4096
    write(groups / "memory", memory__limit_in_bytes=unlimited, memory__usage_in_bytes=GIB)
    assert (host_memory_gib() or (0, 0))[0] > 0.5
    own = groups / "memory" / "job"
    write(own, memory__limit_in_bytes=GIB // 4, memory__usage_in_bytes=GIB // 8)
    write(own / "step", memory__limit_in_bytes=unlimited, memory__usage_in_bytes=0)
    monkeypatch.setattr(host_memory, "_own_groups", lambda: {"memory": "/job/step", "": "/x"})
    assert host_memory_gib() == (0.25, 0.125)


def test_a_limit_of_the_address_space_counts(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**60, 2**60))
    roomy = host_memory_gib()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (4096, 4096))
    assert roomy is not None and roomy[1] > 0
    assert host_memory_gib() == (4096 / GIB, 0.0)


def test_no_limit_is_a_word(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory._number(tmp_path / "memory.max") is None
    assert host_memory._number(tmp_path / "missing") is None
    (tmp_path / "memory.max").write_text("1024\n")
    assert host_memory._number(tmp_path / "memory.max") == 1024


def test_work_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "host_memory_gib", lambda: (8.0, 3.0))
    monkeypatch.setattr(host_memory, "swap_gib", lambda: 0.0)
    assert available_gib() == 2.5
    refuse_too_large(2.5, "x", "y")
    with pytest.raises(UserError, match=r"^it: needs about 2\.6 GiB .* 2\.5 GiB .*; do less$"):
        refuse_too_large(2.6, "it", "do less")
    monkeypatch.setattr(host_memory, "swap_gib", lambda: 1.0)
    refuse_too_large(3.5, "x", "y")
    with pytest.raises(UserError, match=r"3\.6 GiB .* 2\.5 GiB and 1 GiB of swap are available"):
        refuse_too_large(3.6, "it", "do less")
    monkeypatch.setattr(host_memory, "host_memory_gib", lambda: None)
    refuse_too_large(1e9, "x", "y")


def test_swap_on_disks_counts_within_a_containers_limits(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert swap_gib() == 0.0
    kib = 2**20
    (groups / "swaps").write_text(
        "Filename Type Size Used Priority\n"
        f"/swap\\040file file {4 * kib} {kib} -2\n/dev/zram0 partition {8 * kib} 0 100\n"
    )
    assert swap_gib() == 3.0
    unlimited = 2**63 - 4096
    write(groups / "memory", memory__memsw__limit_in_bytes=unlimited)
    write(groups, memory__swap__max="max")
    assert swap_gib() == 3.0
    write(groups, memory__swap__max=2 * GIB, memory__swap__current=GIB // 2)
    assert swap_gib() == 1.5
    old = groups / "memory"
    write(old, memory__memsw__limit_in_bytes=4 * GIB, memory__memsw__usage_in_bytes=3 * GIB)
    write(old, memory__limit_in_bytes=3 * GIB, memory__usage_in_bytes=5 * GIB // 2)
    assert swap_gib() == 0.5
    write(groups, memory__swap__max=0)
    assert swap_gib() == 0.0
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**40, 2**40))
    write(groups, memory__swap__max="max")
    assert swap_gib() == 0.0


def test_a_kernel_without_the_available_memory(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"MemTotal: {8 * 2**20} kB\nMemFree: {2**20} kB\nCached: {2**20} kB\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    monkeypatch.setattr(host_memory, "_container_limits", lambda: iter(()))
    monkeypatch.setattr(host_memory, "_process_limits", lambda: iter(()))
    if Path("/proc/meminfo").is_file():
        assert host_memory_gib() == (8.0, 2.0)
