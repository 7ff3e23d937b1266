"""The command: a real server of a tiny student, asked by the official client, and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")

from openai import OpenAI

from infer.serve.options import ServeOptions
from infer.serve.server import serve
from lightx2v_sgmd.files.video import read_video
from lightx2v_sgmd.system.errors import UserError
from tests.students import load_student

TOKEN = "0123456789abcdef-token"


@contextmanager
def running(student: Path, data: Path, token: Path) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A server, as its command runs, and a client of it."""
    command = [sys.executable, "-m", "lightx2v_sgmd", "serve", "--weights", str(student)]
    command += ["--port", "0", "--data", str(data), "--token-file", str(token), "--json"]
    command += ["--device", "cpu", "--text-cache", "none"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        yield process, OpenAI(api_key=TOKEN, base_url=f"{url}/v1", max_retries=20)
    finally:
        process.kill()
        process.wait()


def children(pid: int) -> list[int]:
    """The workers of a server: its children that are not multiprocessing's helper."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    command = {int(name): Path(f"/proc/{name}/cmdline").read_text() for name in found}
    return [name for name, line in command.items() if "spawn_main" in line]


@pytest.mark.slow
def test_the_official_client_gets_its_video_and_kills_lose_nothing(
    shared_student: Path, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    data = tmp_path / "data"
    with running(shared_student, data, token) as (process, client):
        more = {"seed": 7, "num_frames": 9}
        made = client.videos.create_and_poll(
            prompt="a red circle", size="32x32", extra_body=more, poll_interval_ms=200
        )
        assert made.status == "completed" and made.progress == 100, made
        client.videos.download_content(made.id).write_to_file(tmp_path / "got.mp4")
        frames, fps = read_video(tmp_path / "got.mp4")
        video = load_student(shared_student).generate("a red circle", seed=7)
        expected, _ = read_video(video.save(tmp_path / "expected.mp4"))
        assert frames.shape == expected.shape and fps == 8.0
        # The video of another seed differs by 9.
        assert np.abs(frames.astype(float) - expected).mean() < 1

        names = [client.videos.create(prompt=f"circle {i}").id for i in range(3)]
        for worker in children(process.pid):
            os.kill(worker, signal.SIGKILL)
        names += [client.videos.create(prompt=f"square {i}").id for i in range(3)]
        process.send_signal(signal.SIGKILL)
        process.wait()
    with running(shared_student, data, token) as (process, client):
        for name in names:
            assert client.videos.poll(name, poll_interval_ms=200).status == "completed"
            client.videos.download_content(name).write_to_file(tmp_path / "again.mp4")
            assert len(read_video(tmp_path / "again.mp4")[0]) == 9
        assert {video.id for video in client.videos.list(limit=50)} == {made.id, *names}
        assert client.videos.delete(names[0]).deleted
        assert sorted(p.stem for p in (data / "videos").iterdir()) == sorted([made.id, *names[1:]])
        process.send_signal(signal.SIGTERM)
        assert process.wait(600) == 0
    assert not (data / ".lightx2v-sgmd.lock").exists()


def test_a_folder_that_is_not_a_servers_is_left_alone(shared_student: Path, tmp_path: Path) -> None:
    film = tmp_path / "films" / "videos" / "video_1.mp4"
    film.parent.mkdir(parents=True)
    film.write_text("mine")
    options = ServeOptions(data=tmp_path / "films", port=0)
    with pytest.raises(UserError, match="films holds videos and was not made by serve"):
        serve(shared_student, options)
    with pytest.raises(UserError, match="--data: .* lies in the weights"):
        serve(shared_student, replace(options, data=shared_student / "data"))
    assert [*(tmp_path / "films").rglob("*")] == [film.parent, film]
    assert film.read_text() == "mine" and not (shared_student / "data").exists()


@pytest.mark.slow
def test_a_server_that_does_not_start_leaves_no_folder(tmp_path: Path) -> None:
    options = ServeOptions(data=tmp_path / "new" / "data", port=0)
    with pytest.raises(UserError, match="nowhere: does not exist"):
        serve(tmp_path / "nowhere", options)
    assert not (tmp_path / "new").exists()
