"""Opens hostile folders in a process that would notice anything being run, fetched or written.

Started by ``test_hostile.py``: ``python -m tests.untrusted.audited WORK``. For each line of
``WORK/cases`` (name, base, folder) it writes a line to stdout: what every way to open the folder
answered, and what the audit saw. Every answer has a limit of processor time and of memory; a
process that goes beyond is killed, and the line is missing.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 2
"""Processor time for one folder in one way, as SECURITY.md promises; the slowest takes 0.4."""
MEMORY = 500 * 10**6
"""Address space beyond what the program and its libraries have taken, as SECURITY.md promises."""

_FORBIDDEN = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "pty.spawn",
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "builtins.input",
    "pickle.find_class",
    "webbrowser.open",
)
_CHANGING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod")


class Audit:
    """Deeds of the process while it was watched."""

    def __init__(self, work: Path) -> None:
        self.cases = str(work / "folders")
        self.allowed = tuple(str(work / name) for name in ("out", "home", "tmp"))
        self.seen: list[str] = []
        self.watching = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if event in _FORBIDDEN and "imageio_ffmpeg" not in str(arguments[:1]):  # writes the video
            self.seen.append(f"{event} {arguments[:1]}")
        elif event in ("exec", "compile"):
            code = arguments[0] if event == "exec" else arguments[1]
            self._program(event, getattr(code, "co_filename", code))
        elif event in ("import", "ctypes.dlopen"):
            self._program(event, arguments[1] if event == "import" else arguments[0])
        elif event == "open":
            self._opened(*arguments)
        elif event in _CHANGING and arguments[-1] == -1:  # otherwise below a folder that is open
            self._changed(event, arguments[0])

    def _program(self, event: str, file: Any) -> None:
        name = os.fsdecode(file) if isinstance(file, str | bytes) else ""
        if name.startswith(self.cases) or "transformers_modules" in name:
            self.seen.append(f"{event} {name}")

    def _opened(self, path: Any, mode: Any, flags: Any) -> None:
        if not isinstance(path, str | bytes):
            return
        name = os.path.abspath(os.fsdecode(path))
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._changed("open for writing", name)
        elif name.startswith(self.cases) and name.endswith((".py", ".pyc", ".so")):
            self.seen.append(f"open {name}")

    def _changed(self, event: str, path: Any) -> None:
        name = os.path.abspath(os.fsdecode(path)) if isinstance(path, str | bytes) else ""
        inside = name.startswith(self.cases)
        if name and name != os.devnull and (inside or not name.startswith(self.allowed)):
            self.seen.append(f"{event} {name}")


def command(*arguments: str) -> str | None:
    """The command line's error output: None if all is well."""
    from lightx2v_sgmd.cli.main import run

    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(error):
        code = run(list(arguments))
    if code == 0:
        return None
    lines = [line for line in error.getvalue().splitlines() if line.strip()]
    return f"{code}: " + "\n".join(lines)


def called(function: Callable[[], object]) -> str | None:
    """The message that a user would get of a call: None if all is well."""
    from lightx2v_sgmd.cli.errors import explain

    try:
        function()
    except Exception as error:
        lines, code = explain(error)
        return f"{code}: " + "\n".join(f"error: {line}" for line in lines)
    return None


def ways(base: str, folder: str, work: Path) -> dict[str, Callable[[], str | None]]:
    """Every way to open a folder."""
    out = work / "out"
    made = out / f"{len(list(out.iterdir()))}"
    generate = ("generate", "--prompt", "a red circle", "--device", "cpu", "--text-cache", "none")
    size = ("--height", "32", "--width", "32", "--num-frames", "1")
    small = (*size, "--assume-schedule", "sgmd")
    by_weights = (*generate, *small, "--weights", folder, "--out", f"{made}.mp4")
    teacher = str(work / "good" / "teacher")
    inspect = {"inspect": lambda: command("weights", "inspect", folder)}
    if base == "vision":
        return {"vision": lambda: called(lambda: open_vision(folder))}
    if base == "original":
        return {"release": lambda: called(lambda: open_release(folder)), **inspect}
    if base == "run":
        export = ("export", folder, "--dtype", "fp32", "--quiet", "--out", str(made))
        return {"export": lambda: command(*export), **inspect}
    if base == "clip":
        return {"clip": lambda: called(lambda: open_clip(folder))}
    if base in ("cogvideox", "sd3", "pair", "image", "ti2v", "sdxl"):
        return {"teacher": lambda: called(lambda: open_family(folder)), **inspect}
    if base in ("lora", "torch_save", "scaled"):
        (file,) = (str(path) for path in Path(folder).glob("x.*"))
        given = ("--weights", teacher, "--lora", file)
        if base != "lora":
            given = ("--weights", file, "--base", teacher)
        return {
            base: lambda: command(*generate, *small, *given, "--out", f"{made}.mp4"),
            "inspect": lambda: command("weights", "inspect", file, "--base", teacher),
        }
    measure = ("evaluate", "--weights", folder, "--metrics", "brightness", "--steps", "1")
    frames = ("--height", "32", "--width", "32", "--num-frames", "5")
    prompts = ("--prompts", str(work / "prompts.txt"), "--device", "cpu", "--quiet", *frames)
    every = {
        "generate": lambda: command(*by_weights),
        "serve": lambda: called(lambda: open_served(folder)),
        "evaluate": lambda: command(*measure, *prompts, "--out", f"{made}-evaluated"),
        **inspect,
    }
    if base == "export":
        return {
            "verify": lambda: command("weights", "verify", folder),
            "export": lambda: command("export", folder, "--format", "lora", "--out", str(made)),
            **every,
        }
    return {**every, "teacher": lambda: called(lambda: open_teacher(folder))}


def open_served(folder: str) -> None:
    """As the worker of ``serve`` does."""
    from infer.options import Options
    from infer.serve.work.students import Students

    options = Options(device="cpu", assume_schedule="sgmd", text_cache=None)
    students = Students({"student": Path(folder)}, options, {}, 1)
    students.check()
    students.get("student", None)


def open_teacher(folder: str) -> None:
    """As training does."""
    import torch

    from lightx2v_sgmd.families.wan.opening import open_wan
    from lightx2v_sgmd.sampling.teacher_steps import teacher_solver

    model = open_wan(folder)
    teacher_solver(model)
    model.load_vae()
    model.load_text_encoder(torch.float32).encode(["a red circle"])
    model.load_transformer()


def open_family(folder: str) -> None:
    """As training does with a teacher of any family."""
    import torch

    from lightx2v_sgmd.families.opening import open_model
    from lightx2v_sgmd.sampling.teacher_steps import teacher_solver

    model = open_model(folder)
    teacher_solver(model)
    model.load_vae()
    model.load_text_encoder(torch.float32).encode(["a red circle"])
    if model.takes_image != "never":
        model.load_image_encoder()
    for expert in model.experts:
        expert.model.load_transformer()


def open_release(folder: str) -> None:
    """All parts of a release; those of a small one do not fit together."""
    from lightx2v_sgmd.families.wan.opening import open_wan
    from lightx2v_sgmd.untrusted.tokenizer import load_tokenizer

    model = open_wan(folder)
    model.load_transformer()
    model.vae_weights()
    model.text_encoder_weights()
    load_tokenizer(model.source.tokenizer())


def open_vision(folder: str) -> None:
    """As training with a discriminator of pixels does."""
    import torch

    from lightx2v_sgmd.networks.vision_encoder import VisionBackbone, vision_widths

    vision_widths(folder)
    VisionBackbone(folder, torch.device("cpu"))


def open_clip(folder: str) -> None:
    """As ``evaluate --clip`` does."""
    import numpy as np

    from lightx2v_sgmd.apps.evaluation.scores.clip import Clip

    Clip(Path(folder), "cpu").score(np.zeros((2, 16, 16, 3), np.uint8), "a red circle")


def limit_memory() -> None:
    """Limits the memory that is taken from now on."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))


def ignore_free_memory() -> None:
    """Lets no answer depend on how much memory there is, here or within ``limit_memory``."""
    from lightx2v_sgmd.system import host_memory

    host_memory.host_memory_gib = lambda: None


def main(work: Path) -> None:
    """Opens all good folders, so that everything is imported, and then the hostile ones."""
    ignore_free_memory()
    (work / "out").mkdir()
    (work / "prompts.txt").write_text("a red circle\n")
    for base in sorted(path.name for path in (work / "good").iterdir()):
        for command, call in ways(base, str(work / "good" / base), work).items():
            answer = call()
            assert answer is None or (base, command) == ("export", "export"), (
                base,
                command,
                answer,
            )
    gc.collect()
    gc.freeze()  # so that the collections of a command look at what it made alone
    audit = Audit(work)
    limit_memory()
    results = os.fdopen(os.dup(1), "w")
    for line in (work / "cases").read_text().splitlines():
        name, base, folder = json.loads(line)
        answers, seconds, audit.seen = {}, {}, []
        for command, call in ways(base, folder, work).items():
            before = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # nobody handles it: it kills the process
            audit.watching = True
            answers[command] = call()
            audit.watching = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            seconds[command] = round(time.process_time() - before, 2)
        row = {"name": name, "answers": answers, "seen": audit.seen, "seconds": seconds}
        row["mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(row), file=results, flush=True)
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None) or ""
            assert not file.startswith(audit.cases), file


if __name__ == "__main__":
    main(Path(sys.argv[1]))
