"""The checks of ``lightx2v-sgmd doctor``: a function for each subject, and ``run`` for all.

Everything is tried, not guessed: a kernel counts when it ran, a compiler when it compiled, a codec
when it encoded. Nothing here raises: a check that breaks is a finding.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.cli.doctor.compilers import (
    build_problem,
    compiler,
    offloading,
    system_packages,
)
from lightx2v_sgmd.cli.doctor.report import Check, CheckState, DoctorReport, pip
from lightx2v_sgmd.system.errors import first_line, named_line
from lightx2v_sgmd.system.host_memory import host_memory_gib

_OPTIONAL: Final = {
    "torchao": "int8 weights, and fp8 on GPUs from compute capability 8.9",
    "peft": "training adapters (train: lora), LoRA files (--lora)",
    "sentencepiece": "tokenizers without a tokenizer.json, as CogVideoX's",
    "cv2": "measuring videos (demo, compare)",
    "tensorboard": "the tensorboard/ folder of a run",
}
"""Packages that some commands need, and their purpose."""

_ATTENTION: Final = "attention "


def run() -> DoctorReport:
    """Runs all checks on this machine."""
    checks: list[Check] = []
    for name, check in _CHECKS.items():
        try:
            checks.extend(check())
        except Exception as error:  # whatever breaks is what the user wants to know
            checks.append(Check(name, "broken", named_line(error)))
    return DoctorReport(tuple(checks), _chosen_attention())


def _python() -> list[Check]:
    return [Check("python", "ok", f"{platform.python_version()} at {sys.executable}")]


def _devices() -> list[Check]:
    import torch

    from lightx2v_sgmd.system.torch_faults import slow_conv3d

    results = [Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        detail = (
            f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, "
            f"{gpu.total_memory / 2**30:.1f} GiB"
        )
        results.append(Check(f"cuda:{index}", "ok", detail))
    if (fault := slow_conv3d(torch.device("cuda"))) is not None:
        results.append(Check("3D convolutions", "missing", fault, pip("--upgrade torch")))
    if torch.cuda.device_count() == 0:
        why = (
            "PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch finds none"
        )
        detail = f"{why}: the CPU is used, which is enough for the bundled teacher"
        results.append(Check("GPU", "info", detail))
    return results


def _setting() -> tuple[Any, Any, int]:
    """The setting of Wan2.1 on this machine's best device: device, precision, head size."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda"), torch.bfloat16, 128
    return torch.device("cpu"), torch.float32, 128


def _models() -> list[Check]:
    """Imports the classes of all families, and says which optional packages are broken."""
    from lightx2v_sgmd.families.opening import LIBRARY_CLASSES
    from lightx2v_sgmd.system.optional_packages import distribution, prepare_libraries

    broken = prepare_libraries()
    results, missing = [], []
    families: dict[str, list[str]] = {"diffusers": [], "transformers": []}
    for family, classes in LIBRARY_CLASSES.items():
        for library, names in classes.items():
            try:
                module = importlib.import_module(library)
                for name in names:
                    getattr(module, name)  # the libraries import a class when it is used
            except Exception as error:
                if family == next(iter(LIBRARY_CLASSES)):  # the bundled teacher's
                    raise
                first = first_line(error)
                detail = f"{name} of {library} does not import, so its models do not run: {first}"
                missing.append(Check(family, "missing", detail, pip(f"--upgrade {library}")))
            else:
                families[library].append(family)
    for library, whose in families.items():
        version = importlib.metadata.version(library)
        detail = f"{version}: the classes of {', '.join(whose)} import"
        results.append(Check(library, "ok", detail))
    results += missing
    for package, problem in broken.items():
        if package in _OPTIONAL:  # they have lines of their own
            continue
        name = distribution(package)
        detail = f"{_version(name)} is installed but does not import, and is left out: {problem}"
        results.append(Check(name, "missing", detail, pip(name, "uninstall")))
    return results


def _version(name: str, package: str = "") -> str:
    """The version of a distribution, or of the package in it if the names differ."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", "it"))


def _attention() -> list[Check]:
    """Tries each kernel in the setting of Wan2.1 on this machine's best device."""
    from lightx2v_sgmd.networks.attention import kernels

    device, dtype, head_dim = _setting()
    absent: CheckState = "missing" if device.type == "cuda" else "info"
    return [
        Check(_ATTENTION + kernel.name, "ok" if kernel.available else absent, kernel.reason)
        for kernel in kernels(device, dtype, head_dim)
    ]


def _chosen_attention() -> str:
    """The kernel that ``generate`` would choose, or ``none``."""
    from lightx2v_sgmd.networks.attention import choose

    try:
        return choose("auto", *_setting())
    except Exception:  # whatever stops the kernels stands among the findings
        return "none"


def _inference() -> list[Check]:
    """Checks what makes generation faster or smaller: quantised weights, LoRA, compiling."""
    from lightx2v_sgmd.system.optional_packages import why_unusable

    results = [_optional(package, what) for package, what in _OPTIONAL.items()]
    gpu = _setting()[0].type == "cuda"
    triton = why_unusable("triton") if gpu else None
    if triton is not None:
        detail = f"torch.compile needs Triton, which {triton}"
        results.append(Check("compile", "missing", detail, pip("--force-reinstall triton")))
    elif not gpu and (found_compiler := compiler()) is None:
        detail = "torch.compile on a CPU needs a C++ compiler"
        results.append(Check("compile", "info", detail, system_packages()))
    else:
        detail = "torch.compile has Triton" if gpu else f"torch.compile has {found_compiler}"
        results.append(Check("compile", "ok", detail))
    return results


def _optional(package: str, what: str) -> Check:
    """Checks that a package which a command may need is installed and imports."""
    from lightx2v_sgmd.system.optional_packages import distribution, why_unusable

    name = distribution(package)
    problem = why_unusable(package)
    if problem is None:
        return Check(name, "ok", f"{_version(name, package)}: {what}")
    if problem == "is not installed":
        return Check(name, "info", f"not installed: {what}", pip(name))
    version = _version(name)
    # Each release of torchao needs a new enough PyTorch; an older release works with an older one.
    older = package == "torchao" and version[0].isdecimal()
    mended = f"'torchao<{version}'" if older else f"--force-reinstall {name}"
    return Check(name, "missing", f"{version} {problem}; needed for {what}", pip(mended))


def _deepspeed() -> list[Check]:
    results = []
    try:
        version = importlib.metadata.version("deepspeed")
        problem = _import_elsewhere("deepspeed")
        if problem:
            detail = (
                f"{version} is installed but does not import: {problem}; parallel.strategy zero3 "
                "cannot run, local can"
            )
            remedy = pip("--force-reinstall --no-deps deepspeed")
            results.append(Check("deepspeed", "missing", detail, remedy))
        else:
            results.append(Check("deepspeed", "ok", f"{version}, for parallel.strategy zero3"))
    except importlib.metadata.PackageNotFoundError:
        detail = "not installed: parallel.strategy zero3 cannot run, local can"
        results.append(Check("deepspeed", "missing", detail, pip("deepspeed")))
    problem, remedy = build_problem()
    if problem:
        detail = f"cannot be built ({problem}); zero3 on a CPU builds one at start-up"
        results.append(Check("deepspeed ops", "missing", detail, remedy))
    else:
        detail = f"can be built: {compiler()} and ninja work, Python's headers are there"
        results.append(Check("deepspeed ops", "ok", detail))
    return [*results, offloading()]


def _import_elsewhere(module: str) -> str:
    """Imports a module in another process, since importing DeepSpeed changes the process.

    Returns:
        The last line of the error, or "".
    """
    command = [sys.executable, "-c", f"import {module}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "importing it takes over two minutes"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"Python ended with code {done.returncode}"


def _video() -> list[Check]:
    """Encodes a short clip and reads it back."""
    from lightx2v_sgmd.system.optional_packages import why_unusable

    problem = why_unusable("imageio_ffmpeg")
    if problem is not None:
        detail = f"the package imageio-ffmpeg {problem}: no videos can be written"
        return [Check("video", "broken", detail, pip("--force-reinstall imageio-ffmpeg"))]
    import imageio_ffmpeg
    import numpy as np

    from lightx2v_sgmd.files.video import read_video, write_video

    clip = np.zeros((3, 32, 32, 3), np.uint8)
    clip[1] = 200
    with tempfile.TemporaryDirectory() as folder:
        read, _ = read_video(write_video(clip, Path(folder) / "probe.mp4", 8))
    if read.shape != clip.shape or abs(int(read[1].mean()) - 200) > 10:
        detail = "ffmpeg encodes H.264, but reading it back gives something else"
        return [Check("video", "broken", detail, pip("--force-reinstall imageio-ffmpeg"))]
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    version = imageio_ffmpeg.get_ffmpeg_version()
    return [Check("video", "ok", f"H.264 through ffmpeg {version} at {ffmpeg}")]


def _resources() -> list[Check]:
    results = []
    for name, folder in (("disk here", Path.cwd()), ("disk for temporary files", _temporary())):
        free = shutil.disk_usage(folder).free / 2**30
        state: CheckState = "ok" if free >= 2 else "missing"
        remedy = "" if free >= 2 else f"free some space on the disk of {folder}"
        results.append(Check(name, state, f"{free:.1f} GiB free at {folder}", remedy))
    memory = host_memory_gib()
    if memory is None:
        return [*results, Check("memory", "info", "cannot be told on this system")]
    total, available = memory
    state = "ok" if available >= 2 else "missing"
    remedy = "" if available >= 2 else "close other programs: the demo needs about 2 GiB"
    detail = f"{available:.1f} of {total:.1f} GiB available"
    return [*results, Check("memory", state, detail, remedy)]


def _temporary() -> Path:
    return Path(tempfile.gettempdir())


def _teacher() -> list[Check]:
    from lightx2v_sgmd.families.opening import bundled_teacher, open_model
    from lightx2v_sgmd.files.tensors.safetensors_files import read_headers, weight_files

    if not bundled_teacher().is_dir():
        detail = f"is missing from {bundled_teacher()}: the demo cannot run"
        return [Check("bundled teacher", "broken", detail, pip("--force-reinstall lightx2v-sgmd"))]
    model = open_model(bundled_teacher())
    parts: Sequence[tuple[str, str]] = (
        ("transformer", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    )
    for part, stem in parts:
        read_headers(weight_files(Path(model.path) / part, stem))
    files = [path for path in Path(model.path).rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    return [Check("bundled teacher", "ok", f"{size:.1f} MiB at {model.path}")]


_CHECKS: Final[dict[str, Callable[[], list[Check]]]] = {
    "python": _python,
    "torch": _devices,
    "models": _models,
    "attention": _attention,
    "inference": _inference,
    "deepspeed": _deepspeed,
    "video": _video,
    "resources": _resources,
    "bundled teacher": _teacher,
}
