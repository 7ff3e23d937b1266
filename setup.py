"""Builds and installs the package; tool settings are in pyproject.toml."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def version() -> str:
    """The version that ``lightx2v_sgmd/__init__.py`` declares, read without importing it."""
    text = (ROOT / "lightx2v_sgmd" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__(?:: Final)? = "([^"]+)"$', text, flags=re.MULTILINE)
    assert found, "lightx2v_sgmd/__init__.py declares no __version__"
    return found.group(1)


class BuildWithConfigs(build_py):
    """Adds the shipped jobs of ``configs/`` to the package, as ``lightx2v_sgmd/_configs/``.

    They stay at the top of the checkout, where a reader looks for them; an installed package needs
    them too. ``lightx2v_sgmd.system.resources.config_path`` finds them in either place.
    """

    def run(self) -> None:
        """Build as usual, then copy the jobs; an editable install reads them from the checkout."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "lightx2v_sgmd" / "_configs"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(ROOT / "configs", target)


def readme() -> str:
    """The text that package indexes show, if the README is there."""
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


setup(
    name="lightx2v-sgmd",
    version=version(),
    description="Distils video diffusion models into 4-step students with SGMD",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(
        include=["lightx2v_sgmd*", "distill*", "infer*", "weights*"], exclude=["*._configs*"]
    ),
    package_data={
        "lightx2v_sgmd": ["assets/**/*", "families/sources/configs/*.json", "py.typed"],
        "distill": ["py.typed"],
        "infer": ["py.typed", "serve/api/page.html", "serve/api/docs.html"],
        "weights": ["py.typed"],
    },
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["lightx2v-sgmd = lightx2v_sgmd.__main__:main"]},
    # constraints.txt locks what the tests run with; tools/checks/test_versions.py tries the oldest
    # and the newest torch and transformers named here.
    install_requires=[
        "torch>=2.8,<2.15",
        "diffusers>=0.42,<0.43",
        "transformers>=5.17,<6",
        "accelerate>=1.10",
        "safetensors>=0.5",
        # These two read tokenizers that are published as spiece.model alone: CogVideoX's.
        "sentencepiece>=0.2",
        "protobuf>=5",
        "ftfy>=6.3",
        "numpy>=2.0",
        "pydantic>=2.10,<3",
        "PyYAML>=6.0",
        "typer>=0.29,<0.30",
        "rich>=13.8",
        "imageio>=2.36",
        "imageio-ffmpeg>=0.5",
        # Draws the plots of reports.
        "matplotlib>=3.10",
        "pillow>=10",
        # Headless: no window is ever opened, and the other build needs libGL, which servers lack.
        "opencv-python-headless>=4.10",
        "tensorboard>=2.18",
    ],
    extras_require={
        "zero3": ["deepspeed>=0.19,<0.20", "ninja>=1.11"],
        # For generate: int8 and fp8 weights; LoRA files.
        "quant": ["torchao>=0.15"],
        "lora": ["peft>=0.17"],
        "gpu": ["flash-attn>=2.7", "xformers>=0.0.30"],
        "serve": [
            "fastapi>=0.130",
            # Reads forms.
            "python-multipart>=0.0.20",
            "uvicorn>=0.35",
        ],
        # Trackers of a run (output.trackers), each an extra of its own.
        "wandb": ["wandb>=0.21"],
        "trackio": ["trackio>=0.2"],
        "mlflow": ["mlflow>=3"],
        # For serve --ray: many machines.
        "ray": ["ray[serve]>=2.50"],
        # For tools/fuzzing/fuzz.py.
        "fuzz": ["atheris>=3"],
        "dev": [
            "codespell>=2.4",
            # The server's tests: its extra, the client that people use, and requests that try to
            # break it.
            "fastapi>=0.130",
            "openai>=2",
            "python-multipart>=0.0.20",
            "schemathesis>=4",
            "uvicorn>=0.35",
            # Sphinx and these two build the documentation.
            "furo>=2025.9",
            "hypothesis>=6.100",
            "mypy>=1.15",
            "myst-parser>=5",
            "peft>=0.17",
            # Drives the Chromium that the machine has; brings no browser of its own.
            "playwright>=1.50",
            "pre-commit>=4",
            "pytest>=8",
            "pytest-cov>=7",
            # Runs two test files at a time.
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "sphinx>=9",
            "types-PyYAML",
            "types-setuptools",
        ],
    },
)
