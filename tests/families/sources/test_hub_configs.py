"""Models by their hub id, from a hub that is a folder on this machine."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

from lightx2v_sgmd.families.wan import original as wan_original
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.system.errors import UserError
from tests.families.original import write_original

HUB_ID = "someone/a-small-Wan"


class Hub:
    """Gives what is asked of one repository, file by file, into a cache that starts empty."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.cache = repository, cache
        self.fetched: list[str] = []
        self.offline = False

    def snapshot_download(
        self,
        repo_id: str,
        allow_patterns: list[str] | None = None,
        local_files_only: bool = False,
    ) -> str:
        if self.offline:
            raise LocalEntryNotFoundError("no connection")
        assert repo_id == HUB_ID
        for path in sorted(p for p in self.repository.rglob("*") if p.is_file()):
            name = path.relative_to(self.repository).as_posix()
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns or ["*"]):
                self._fetch(name)
        return str(self.cache)

    def hf_hub_download(self, repo_id: str, name: str) -> str:
        if self.offline:
            raise LocalEntryNotFoundError("no connection")
        if repo_id != HUB_ID or not (self.repository / name).is_file():
            response: Any = SimpleNamespace(headers={}, request=None)
            raise RemoteEntryNotFoundError(f"no {name}", response=response)
        return self._fetch(name)

    def _fetch(self, name: str) -> str:
        target = self.cache / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.repository / name, target)
        self.fetched.append(name)
        return str(target)


@pytest.fixture
def hub(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Hub]:
    def with_layout(layout: str) -> Hub:
        repository = tiny_teacher
        if layout == "original":
            model = open_wan(tiny_teacher)
            monkeypatch.setattr(wan_original, "VAE_CONFIG", model.vae_config)
            text_config = model.full_text_encoder_config()
            monkeypatch.setattr(wan_original, "TEXT_ENCODER_CONFIG", text_config)
            repository = write_original(model, tmp_path / "released", ".pth")
        made = Hub(repository, tmp_path / "cache")
        monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", made.hf_hub_download)
        return made

    return with_layout


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_model_of_either_layout_by_its_id(
    hub: Callable[[str], Hub], tiny_teacher: Path, layout: str
) -> None:
    """Opening fetches configurations, loading a part that part; nothing else is fetched."""
    found, expected = hub(layout), open_wan(tiny_teacher)
    model = open_wan(HUB_ID)
    assert model.source.layout == layout
    assert all(name.endswith(".json") for name in found.fetched)
    network, same = model.load_transformer(), expected.load_transformer().state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in network.state_dict().items())
    assert not any("vae" in n.lower() and not n.endswith(".json") for n in found.fetched)
    vae, same = model.load_vae(), expected.load_vae().state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in vae.state_dict().items())
    prompts = ["a red circle"]
    ours, theirs = (m.load_text_encoder(torch.float32).rows(prompts)[0] for m in (model, expected))
    assert torch.equal(ours, theirs)


def test_without_a_network_it_is_said(hub: Callable[[str], Hub]) -> None:
    found = hub("diffusers")
    found.offline = True
    with pytest.raises(UserError, match=f"{HUB_ID} is neither a folder here nor .*network"):
        open_wan(HUB_ID)
    found.offline = False
    model = open_wan(HUB_ID)
    found.offline = True
    with pytest.raises(UserError, match=r"transformer of .* cannot be fetched .*the network"):
        model.load_transformer()


def test_an_id_that_the_hub_does_not_have(hub: Callable[[str], Hub]) -> None:
    hub("diffusers")
    with pytest.raises(UserError, match="nobody/nothing is neither a folder here nor a model"):
        open_wan("nobody/nothing")
