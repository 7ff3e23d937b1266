from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from infer.batch.requests import MOST_VIDEOS, make_requests
from infer.batch.sidecars import problem
from lightx2v_sgmd.files.manifest import changed_files, read_manifest
from lightx2v_sgmd.files.prompts import read_prompts
from lightx2v_sgmd.files.tensors.safetensors_files import read_header
from lightx2v_sgmd.files.yaml_loader import read_tree
from lightx2v_sgmd.outputs import WrittenFiles, content_hash
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.json_text import read_json_file
from lightx2v_sgmd.untrusted.reading import open_file, read_file

READERS: dict[str, Callable[[Path], object]] = {
    "job.yaml": read_tree,
    "prompts.txt": read_prompts,
    "prompts.jsonl": read_prompts,
    "prompts.csv": read_prompts,
    "requests.jsonl": lambda path: make_requests(path, 0),
    "config.json": read_json_file,
    "weights.safetensors": read_header,
    "lora.safetensors": content_hash,
    ".lightx2v-sgmd.written.json": lambda path: WrittenFiles(path.parent),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=r"is a pipe or a device, not a file; save it"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", READERS)
def test_a_device_is_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"is a pipe or a device, not a file; save it"):
        READERS[name](tmp_path / name)


def test_a_socket_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        with pytest.raises(UserError, match="is a pipe or a device"):
            open_file(Path("s"))


def test_a_pipe_in_the_place_of_a_sidecar_is_not_ours(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    assert "was not written for a video" in str(problem(tmp_path / "a.mp4"))


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    assert read_file(tmp_path / "a", 100) == b"x" * 100
    assert read_file(tmp_path / "a", 10) == b"x" * 11


def test_a_manifest_of_thirty_gigabytes_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "lightx2v_sgmd.json"
    path.touch()
    os.truncate(path, 30 * 10**9)
    with pytest.raises(UserError, match=r"lightx2v_sgmd\.json: is not readable JSON"):
        read_manifest(tmp_path)


def test_a_configuration_of_thirty_gigabytes_is_not_hashed(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", 30 * 10**9)
    (tmp_path / "a.safetensors").write_bytes(b"x")
    sha256 = {"config.json": "0", "a.safetensors": "0", "b.json": "0"}
    assert changed_files(tmp_path, sha256) == [
        "config.json is larger than 100,000,000 bytes, which only weights are",
        "a.safetensors has changed since it was written (sha256)",
        "b.json is missing",
    ]


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_more_videos_than_a_command_makes_are_refused(tmp_path: Path, suffix: str) -> None:
    line = json.dumps({"prompt": "x"}) if suffix == "jsonl" else "x"
    path = tmp_path / f"a.{suffix}"
    path.write_text(f"{line}\n" * (MOST_VIDEOS + 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"100,00[01].*split it"):
        make_requests(path, 0)
