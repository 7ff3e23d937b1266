"""Exports are pushed to a hub: a server on this machine that answers as the real one does."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightx2v_sgmd.files.manifest import Manifest, read_manifest
from lightx2v_sgmd.outputs import sha256_file
from lightx2v_sgmd.system.errors import UserError
from tests.tiny import make_tiny_wan
from tests.weights.conftest import write_checkpoint
from weights import export, push, verify
from weights.hub import check_repository

NAME = "me/student"
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


@dataclass
class Hub:
    """The state of the server: a repository, and the large files that it has received."""

    private: bool | None = None  # None: there is no repository
    files: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)
    refuse_commits: bool = False
    status: int = 200
    url: str = ""


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def answer(self, content: Any, status: int = 200, error: str = "") -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            if error:
                self.send_header("X-Error-Code", error)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_GET(self) -> None:
            if hub.status != 200:
                return self.answer({"error": "no"}, hub.status)
            if hub.private is None:
                return self.answer({"error": "no"}, 404, "RepoNotFound")
            siblings = [{"rfilename": name} for name in [".gitattributes", *hub.files]]
            about = {"id": NAME, "private": hub.private, "siblings": siblings, "sha": "0" * 40}
            self.answer(about | {"tags": [], "downloads": 0})

        def do_PUT(self) -> None:
            content = self.body()
            oid = hashlib.sha256(content).hexdigest()
            assert self.path.endswith(oid)
            hub.large[oid] = content
            hub.received.append(oid)
            self.answer({})

        def do_POST(self) -> None:
            content = self.body()
            assert self.headers["Authorization"] == f"Bearer {TOKEN}"
            if self.path == "/api/repos/create":
                asked = json.loads(content)
                if hub.private is None:
                    # Releases of the client differ in the key.
                    hub.private = asked.get("visibility") == "private" or asked.get(
                        "private", False
                    )
                self.answer({"url": f"{hub.url}/{NAME}", "id": NAME, "name": NAME})
            elif self.path.endswith("/validate-yaml"):
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                files = json.loads(content)["files"]
                ways = [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for f in files
                ]
                self.answer({"files": ways})
            elif self.path.endswith("/objects/batch"):
                objects = [dict(o) for o in json.loads(content)["objects"]]
                for entry in objects:
                    if entry["oid"] not in hub.large:
                        href = f"{hub.url}/store/{entry['oid']}"
                        entry["actions"] = {"upload": {"href": href}}
                self.answer({"transfer": "basic", "objects": objects})
            elif "/commit/" in self.path:
                if hub.refuse_commits:
                    return self.answer({"error": "no"}, 403)
                for line in map(json.loads, content.splitlines()):
                    if line["key"] == "file":
                        value = line["value"]
                        hub.files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        hub.files[line["value"]["path"]] = hub.large[line["value"]["oid"]]
                self.answer({"commitUrl": f"{hub.url}/{NAME}/commit/1", "commitOid": "1" * 40})
            else:
                self.answer({"error": self.path}, 404)

    return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    found = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(found))
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export; not to be written to."""
    base = tmp_path_factory.mktemp("pushed")
    write_checkpoint(base / "run", make_tiny_wan(base / "teacher"), 20)
    return export(base / "run", "wan", base / "out", quiet=True)


def test_an_export_is_pushed_without_paths_of_this_machine(hub: Hub, folder: Path) -> None:
    assert push(folder, NAME, quiet=True) == f"{hub.url}/{NAME}"
    assert hub.private is True
    manifest = read_manifest(folder)
    assert manifest is not None
    assert set(hub.files) == {*manifest.sha256, "lightx2v_sgmd.json"}
    saved = hub.files.pop("lightx2v_sgmd.json")
    assert all(content == (folder / name).read_bytes() for name, content in hub.files.items())
    # Only the manifest differs: it names the teacher, and no folder of this machine.
    assert manifest.teacher.endswith("/teacher")
    assert Manifest.from_dict(json.loads(saved)) == replace(manifest, teacher="teacher")
    assert str(folder.parent).encode() not in b"".join([saved, *hub.files.values()])


def test_the_base_of_a_teacher_is_pushed_without_its_path(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(folder, tmp_path / "copied")
    job = yaml.safe_load((copied / "job.yaml").read_text())
    job["teacher"]["base"] = str(tmp_path / "models" / "base")
    (copied / "job.yaml").write_text(yaml.safe_dump(job))
    saved = json.loads((copied / "lightx2v_sgmd.json").read_text())
    saved["sha256"]["job.yaml"] = sha256_file(copied / "job.yaml")
    (copied / "lightx2v_sgmd.json").write_text(json.dumps(saved))
    push(copied, NAME, quiet=True)
    assert yaml.safe_load(hub.files["job.yaml"])["teacher"]["base"] == "base"
    assert str(tmp_path).encode() not in b"".join(hub.files.values())
    got = tmp_path / "got"
    for name, content in hub.files.items():
        (got / name).parent.mkdir(parents=True, exist_ok=True)
        (got / name).write_bytes(content)
    assert verify(got) == []


def test_only_what_the_manifest_lists_is_pushed(hub: Hub, folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copied")
    (copied / "secret.txt").write_text("mine")
    push(copied, NAME, quiet=True, private=False)
    assert "secret.txt" not in hub.files and hub.files and hub.private is False


def test_an_interrupted_push_goes_on(hub: Hub, folder: Path) -> None:
    hub.refuse_commits = True
    with pytest.raises(UserError, match="push: me/student: the token may not write there"):
        push(folder, NAME, quiet=True)
    assert len(hub.received) == 1 and not hub.files
    hub.refuse_commits = False
    push(folder, NAME, quiet=True)
    assert len(hub.received) == 1 and hub.files  # what the hub has is not sent again


def test_a_repository_with_files_is_not_changed(hub: Hub, folder: Path) -> None:
    hub.private, hub.files = True, {"README.md": b"mine"}
    with pytest.raises(UserError, match=r"holds README.md .*--overwrite"):
        push(folder, NAME, quiet=True)
    assert hub.files == {"README.md": b"mine"}
    push(folder, NAME, quiet=True, replace=True)
    assert hub.files["README.md"] == (folder / "README.md").read_bytes()


def test_a_public_repository_is_not_taken_for_a_private_one(hub: Hub) -> None:
    hub.private = False
    with pytest.raises(UserError, match="exists and is public; choose another name, or --public"):
        check_repository(NAME)
    check_repository(NAME, private=False)


def test_a_private_repository_is_not_made_public_by_the_way(hub: Hub) -> None:
    hub.private = True
    check_repository(NAME)
    with pytest.raises(UserError, match="exists and is private, and --public makes new repos"):
        check_repository(NAME, private=False)


@pytest.mark.parametrize("name", ["student", "a/b/c", "../x/y", "me/", "me/a--b", "https://x/y"])
def test_no_name_of_a_repository(name: str) -> None:
    with pytest.raises(UserError, match="is not the name of a repository .*; give ORG/NAME"):
        check_repository(name)


@pytest.mark.parametrize(
    ("status", "says"), [(401, "does not accept the token"), (403, "may not write"), (418, "418")]
)
def test_what_the_hub_refuses_is_one_line(hub: Hub, status: int, says: str) -> None:
    hub.status = status
    with pytest.raises(UserError, match=f"push: {NAME}: .*{says}") as caught:
        check_repository(NAME)
    assert "\n" not in str(caught.value)


def test_no_token_is_said_before_anything_is_exported(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="needs a token .*; run `hf auth login`, or set HF_TOKEN"):
        export(folder, "comfyui", tmp_path / "out", push=NAME, quiet=True)
    assert not (tmp_path / "out").exists()


def test_export_pushes_and_says_how_to_go_on(hub: Hub, folder: Path, tmp_path: Path) -> None:
    hub.refuse_commits = True
    out = tmp_path / "out"
    with pytest.raises(UserError, match="weights push") as caught:
        export(folder, "comfyui", out, push=NAME, public=True, quiet=True)
    assert f"weights push {out} {NAME} --public`" in str(caught.value)
    assert f"the export is whole in {out}" in str(caught.value) and out.is_dir()
    hub.refuse_commits = False
    push(out, NAME, private=False, quiet=True)
    assert any(name.endswith("_bf16.safetensors") for name in hub.files)


def test_public_belongs_to_push(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="public: belongs to --push"):
        export(folder, "comfyui", tmp_path / "out", public=True, quiet=True)


def test_a_changed_export_is_not_pushed(hub: Hub, folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copied")
    (copied / "config.json").write_text("{}")
    with pytest.raises(UserError, match="config.json has changed .*; export the weights again"):
        push(copied, NAME, quiet=True)
    assert hub.private is None
