"""Optional packages: tells whether they can be used, and hides broken ones from libraries.

diffusers, transformers and accelerate ask whether an optional package is installed, not whether it
imports. One that is installed but does not import (built for another PyTorch, for example) stops
all three. So before they are first imported here, the packages that they would import are tried,
and a broken one is made to look as if it were not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.system.errors import UserError, first_line
from lightx2v_sgmd.system.quiet import no_logging

_IMPORTED_ALONG: Final[dict[str, tuple[str, ...]]] = {
    "torch_xla": ("torch_xla",),
    "transformer_engine": ("transformer_engine",),
    "scipy": ("scipy",),
    "sentencepiece": ("sentencepiece",),
    "gguf": ("gguf",),
    "torchvision": ("torchvision",),
    "torchaudio": ("torchaudio",),
    "torchao": (
        "torchao",
        "torchao.quantization",
        "torchao.prototype.safetensors.safetensors_support",
    ),
    "bitsandbytes": ("bitsandbytes",),
    "flash_attn": ("flash_attn",),
    "flash_attn_interface": ("flash_attn_interface",),
    "sageattention": ("sageattention",),
    "xformers": ("xformers", "xformers.ops"),
    "peft": ("peft",),  # last: it imports those above
}
"""Optional packages that diffusers, transformers and accelerate import, and the modules they use.

The libraries import them wherever they are installed, so trying them first costs no time. Packages
that are imported only when used (DeepSpeed, OpenCV, ffmpeg, TensorBoard) are not among them.
"""

_DISTRIBUTIONS: Final = {
    "cv2": "opencv-python-headless",
    "flash_attn": "flash-attn",
    "fa3_fwd_interface": "fa3-fwd",
    "flash_attn_interface": "flash-attn-3",
    "google.protobuf": "protobuf",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "torch_xla": "torch-xla",
    "transformer_engine": "transformer-engine",
}
_LIBRARIES: Final = ("diffusers", "transformers", "accelerate", "peft")
_OWN_PARTS: Final = (*_LIBRARIES, "huggingface_hub", "torch", "importlib", "lightx2v_sgmd")


@cache
def prepare_libraries() -> dict[str, str]:
    """Imports diffusers with broken optional packages hidden; call it before any import of it.

    Importing a hidden package raises ModuleNotFoundError in this process from then on. Messages
    that the libraries log while they load are not shown.

    Returns:
        The broken packages, and the error that importing each one gave.

    Raises:
        UserError: diffusers cannot be imported all the same; names the package that fails.
    """
    loaded_before = [name for name in _LIBRARIES if name in sys.modules]
    broken: dict[str, str] = {}
    with no_logging(), warnings.catch_warnings(), _on_the_cpu():
        warnings.simplefilter("ignore")
        for package, modules in _IMPORTED_ALONG.items():
            if not is_installed(package):
                continue
            problem = _import_problem(modules)
            if problem is not None:
                _hide(package)
                broken[package] = problem
        if broken:
            for library in loaded_before:
                _forget_what_was_found(library, broken)
        try:
            importlib.import_module("diffusers.models.modeling_utils")
        except Exception as error:  # a broken package fails in any way
            raise UserError(_explain(error)) from error
    return broken


def _on_the_cpu() -> AbstractContextManager[Any]:
    """Makes the CPU the default device while libraries are imported.

    Libraries make tensors as they load, which PyTorch 2.8's compiler cannot do on ``meta``, and a
    caller that builds a network on ``meta`` may be the first to need the libraries.
    """
    torch = sys.modules.get("torch")
    return nullcontext() if torch is None else torch.device("cpu")


def is_installed(package: str) -> bool:
    """True if a package or module is installed; the import itself is not tried."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def why_unusable(package: str) -> str | None:
    """The reason why a package cannot be used, or None; imports it.

    Args:
        package: The import name: ``peft``, ``cv2``.

    Returns:
        ``is not installed`` or ``is installed but does not import: ...``.
    """
    problem = prepare_libraries().get(package) if package in _IMPORTED_ALONG else None
    if problem is None:
        if not is_installed(package):
            return "is not installed"
        problem = _import_problem((package,))
    if problem is None and package == "imageio_ffmpeg":
        return _ffmpeg_problem()
    return None if problem is None else f"is installed but does not import: {problem}"


def _ffmpeg_problem() -> str | None:
    """The reason why the package with ffmpeg finds none that runs, or None."""
    asked = os.environ.get("IMAGEIO_FFMPEG_EXE")
    if asked:
        if shutil.which(asked) is not None:
            return None
        return f"finds no ffmpeg: IMAGEIO_FFMPEG_EXE is {asked}, which does not run (unset it)"
    try:
        found = importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    except RuntimeError:
        return "finds no ffmpeg on this machine"
    return None if shutil.which(found) else f"finds no ffmpeg that runs ({found} does not)"


def required(package: str) -> Any:
    """Imports a package that the running command needs.

    Args:
        package: The import name.

    Raises:
        UserError: the package is missing or broken; names the command that installs it again.
    """
    problem = why_unusable(package)
    if problem is not None:
        name = distribution(package)
        raise UserError(f"the package {name} {problem}; install it again ({reinstall(package)})")
    return importlib.import_module(package)


def distribution(package: str) -> str:
    """The name that pip has for a package: ``opencv-python-headless`` for ``cv2``."""
    return _DISTRIBUTIONS.get(package, package)


def reinstall(package: str) -> str:
    """The command that installs a package anew for this Python."""
    return f"{sys.executable} -m pip install --force-reinstall --no-deps {distribution(package)}"


def _import_problem(modules: tuple[str, ...]) -> str | None:
    """The error of importing a package, or None; a submodule may be missing."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            absent = module != modules[0] and f"{module}.".startswith(f"{error.name}.")
            if not absent:
                return first_line(error)
        except Exception as error:  # an extension built for another torch fails in many ways
            return first_line(error)
    return None


def _hide(package: str) -> None:
    """Makes a package look as if it were not installed, to this process alone."""
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        del sys.modules[name]
    # As Python documents: import then raises ModuleNotFoundError, and find_spec returns None.
    sys.modules[package] = None  # type: ignore[assignment]


def _forget_what_was_found(library: str, broken: dict[str, str]) -> None:
    """Makes a library that was imported before look again for optional packages."""
    for part in ("utils.import_utils", "utils.imports", "import_utils"):
        name = f"{library}.{part}"
        found = vars(sys.modules[name]) if name in sys.modules else {}
        for package in broken:
            if f"_{package}_available" in found:
                found[f"_{package}_available"] = False
        for attribute, value in found.items():
            if attribute.startswith("is_") and hasattr(value, "cache_clear"):
                value.cache_clear()


def _explain(error: BaseException) -> str:
    """A line that names the package which keeps diffusers from importing, and the remedy."""
    cause = error
    while (deeper := cause.__cause__ or cause.__context__) is not None:
        cause = deeper
    culprit = "diffusers"
    trace = cause.__traceback__
    while trace is not None:
        package = _package_of(Path(trace.tb_frame.f_code.co_filename))
        culprit = package if package and package not in _OWN_PARTS else culprit
        trace = trace.tb_next
    return (
        f"diffusers cannot be imported, because {culprit} fails: {first_line(cause)}; install the "
        f"release of {culprit} that fits the other packages, or remove it (pip uninstall "
        f"{culprit})"
    )


def _package_of(file: Path) -> str | None:
    parts = file.parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts:
            return Path(parts[parts.index(folder) + 1]).stem
    return None
