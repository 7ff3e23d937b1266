from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightx2v_sgmd
from lightx2v_sgmd.families.sources.hub_configs import known_hub_ids
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path, shipped_jobs

ROOT = Path(__file__).resolve().parent.parent


def test_the_checkouts_jobs_are_found() -> None:
    assert config_path("sprites_sgmd.yaml") == ROOT / "configs" / "sprites_sgmd.yaml"
    with pytest.raises(UserError, match="sprites_sgmd.yaml"):
        config_path("nothing.yaml")


def test_a_built_package_has_everything_it_needs(tmp_path: Path) -> None:
    base = tmp_path / "build"
    subprocess.run(
        [
            sys.executable,
            "setup.py",
            "-q",
            "build",
            "-b",
            str(base),
            "--build-lib",
            str(base / "lib"),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    code = (
        "from lightx2v_sgmd.system import resources; "
        "from lightx2v_sgmd.job.loading import load_job; "
        "from lightx2v_sgmd.families.sources.hub_configs import known_hub_ids; "
        "from lightx2v_sgmd.families.sources.model_folder import shipped_prompts; "
        "jobs = [load_job(resources.config_path(n)) for n in resources.shipped_jobs()]; "
        "print(resources.__file__, len(jobs), len(known_hub_ids()), "
        "resources.config_path('prompts/examples.txt').is_file(), "
        "len(shipped_prompts('sprites')))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(base / "lib")},
        capture_output=True,
        text=True,
        check=True,
    )
    home = base / "lib" / "lightx2v_sgmd" / "system" / "resources.py"
    models = str(len(known_hub_ids()))
    assert done.stdout.split() == [str(home), str(len(shipped_jobs())), models, "True", "2048"]


def test_every_requirement_is_locked() -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    wanted = set(re.findall(r'^ +"([A-Za-z0-9-]+)(?:[<>=]=?[\w.,<>=]+)?",$', setup, flags=re.M))
    wanted |= set(re.findall(r'"(deepspeed|ninja)>=', setup))
    assert {"torch", "diffusers", "typer", "pytest", "deepspeed"} <= wanted
    locked = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    }
    assert {name.lower() for name in wanted} - locked == set()


def test_the_newest_release_is_one_everywhere() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.findall(r"^## ([\d.]+) \(([\d-]+)\)$", changelog, re.MULTILINE)[0]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {version}" in citation and f"date-released: {date}" in citation
    assert lightx2v_sgmd.__version__ == version or lightx2v_sgmd.__version__.endswith(".dev0")


def test_the_public_api_is_lazy_and_whole() -> None:
    assert lightx2v_sgmd.load_job.__module__ == "lightx2v_sgmd.job.loading"
    for name in lightx2v_sgmd.__all__:
        assert getattr(lightx2v_sgmd, name) is not None
    assert set(lightx2v_sgmd.__all__) <= set(dir(lightx2v_sgmd))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        lightx2v_sgmd.nothing  # noqa: B018
