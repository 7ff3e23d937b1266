"""Stand-in packages: installed as far as Python can tell, with a body of the test's choosing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parent.parent
PACKAGES: Final = {
    "bitsandbytes": ("bitsandbytes", "0.49.0"),
    "cv2": ("opencv-python-headless", "5.0.0.93"),
    "deepspeed": ("deepspeed", "0.19.8"),
    "flash_attn": ("flash-attn", "2.8.3"),
    "imageio_ffmpeg": ("imageio-ffmpeg", "0.8.1"),
    "peft": ("peft", "0.21.2"),
    "tensorboard": ("tensorboard", "2.21.0"),
    "torchao": ("torchao", "0.18.0"),
    "torchvision": ("torchvision", "0.28.0"),
    "xformers": ("xformers", "0.0.35"),
}
"""Distribution and version of each package, such as diffusers and transformers accept."""


def write_package(folder: Path, package: str, body: str | None = None) -> Path:
    """Writes a package below a folder; by default its import raises as a wrong build's does."""
    name, version = PACKAGES[package]
    (folder / package).mkdir(parents=True)
    body = body if body is not None else f"raise RuntimeError('undefined symbol: {package}_c10')\n"
    (folder / package / "__init__.py").write_text(body, encoding="utf-8")
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (about / "METADATA").write_text(metadata, encoding="utf-8")
    (about / "top_level.txt").write_text(f"{package}\n", encoding="utf-8")
    return folder


def run_with(
    folders: Iterable[Path], script: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Runs a Python script that finds these folders' packages before those that are installed."""
    paths = [*(str(folder) for folder in folders), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
