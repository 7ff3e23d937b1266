"""VideoAlign's scores (arXiv 2501.13918): a network that was trained on people's judgement.

VideoAlign is a program with weights, and its scores depend on its own prompt, frame reader and
network. So it is run, not rewritten: the user has a checkout of it with its weights in
``checkpoints/``, and a Python with what it asks for (its ``environment.yaml`` names
transformers 4.45.2, which this program cannot use). It runs as another process, one video at a
time. Its weights in pickled files are read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from lightx2v_sgmd.apps.evaluation.measuring import SideVideos
from lightx2v_sgmd.outputs import content_hashes
from lightx2v_sgmd.system.errors import RunError, UserError, short_line
from lightx2v_sgmd.system.processes import last_line, program_of
from lightx2v_sgmd.untrusted.fields import Real, first_problem
from lightx2v_sgmd.untrusted.json_text import RECORD, parse_json

SCORES: Final = {
    "videoalign": "Overall",
    "videoalign_vq": "VQ",
    "videoalign_mq": "MQ",
    "videoalign_ta": "TA",
}
"""Metrics, and VideoAlign's own names for them."""
CODE: Final = "inference.py"
CONFIG_FILE: Final = "model_config.json"
_PYTHON_REMEDY: Final = "name the Python of the environment that VideoAlign runs in"
_ANSWER: Final = {name: Real(-1e6, 1e6) for name in SCORES.values()}
_REMEDY: Final = (
    "name a checkout of VideoAlign (github.com/KwaiVGI/VideoAlign) with the files of "
    "KwaiVGI/VideoReward in its folder checkpoints"
)

_RUN: Final = """
import importlib.util, json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what VideoAlign prints goes to the log
code, weights, device = sys.argv[1:]
sys.path.insert(0, code)
import torch
load = torch.load
def load_tensors(*arguments, **options):
    return load(*arguments, **{**options, "weights_only": True})
torch.load = load_tensors
if device == "auto":
    device = "cuda" if torch.cuda.is_available() else "cpu"
import inference
create = inference.create_model_and_processor
def create_here(*arguments, training_args, **options):
    flash = device.startswith("cuda") and importlib.util.find_spec("flash_attn") is not None
    training_args.disable_flash_attn2 = not flash
    return create(*arguments, training_args=training_args, **options)
inference.create_model_and_processor = create_here
model = inference.VideoVLMRewardInference(weights, device=device)
for line in sys.stdin:
    video, prompt = json.loads(line)
    with torch.no_grad():
        scores = model.reward([video], [prompt])[0]
    print(json.dumps(scores), file=answers, flush=True)
"""
"""Reads a line ``[video, prompt]``, answers a line ``{"VQ": ..., "MQ": ..., "TA": ...}``."""


def weights_folder(folder: Path) -> Path:
    """The folder of weights in a checkout: ``checkpoints``, or the one folder in it that has them.

    Raises:
        UserError: the folder is no checkout, or has no weights.
    """
    if not (folder / CODE).is_file():
        raise UserError(f"--videoalign: {folder} has no {CODE}; {_REMEDY}")
    places = [folder / "checkpoints", *sorted(folder.glob("checkpoints/*"))]
    found = [place for place in places if (place / CONFIG_FILE).is_file()]
    if not found:
        raise UserError(f"--videoalign: {folder / 'checkpoints'} has no {CONFIG_FILE}; {_REMEDY}")
    if not [file for file in found[0].glob("checkpoint-*/*") if file.is_file()]:
        raise UserError(f"--videoalign: {found[0]} has no checkpoint-* with weights; {_REMEDY}")
    return found[0]


def check_python(python: Path | None) -> None:
    """Refuses a Python that is none, before anything is made.

    Raises:
        UserError: it is no program.
    """
    program = program_of(python)
    if shutil.which(program) is None:
        raise UserError(f"--videoalign-python: {program} cannot be run; {_PYTHON_REMEDY}")


class VideoAlign:
    """VideoAlign in a process of its own; a context that ends it.

    Args:
        folder: The checkout.
        python: The Python that has what it asks for; None is this one.
        device: ``cpu`` or ``cuda``; None leaves it to the machine.

    Raises:
        UserError: the folder is none, or the Python cannot be started.
    """

    def __init__(self, folder: Path, python: Path | None, device: str | None) -> None:
        weights = weights_folder(folder).absolute()
        self._log: IO[bytes] = tempfile.TemporaryFile()
        program = program_of(python)
        command = [program, "-c", _RUN, str(folder.absolute()), str(weights), device or "auto"]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            raise UserError(
                f"--videoalign-python: {program} cannot be run ({short_line(str(error), 80)}); "
                f"{_PYTHON_REMEDY}"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def score(self, file: Path, prompt: str) -> dict[str, float]:
        """The scores of a video, normalised as VideoAlign does it, by our metrics' names.

        Raises:
            RunError: VideoAlign failed; the last line that it printed says why.
        """
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None, "both are pipes"
        try:
            requests.write(json.dumps([str(file.absolute()), prompt]) + "\n")
            requests.flush()
            line = answers.readline()
        except OSError:
            line = ""
        if not line:
            self._process.wait()
            raise RunError(
                f"--videoalign: it failed on {file}: {last_line(self._log)}; try it alone as its "
                "README says, and name the Python in which it runs by --videoalign-python"
            )
        found = parse_json(line.encode(), RECORD)
        if not isinstance(found, dict) or first_problem(found, _ANSWER, frozenset(_ANSWER)):
            raise RunError(
                f"--videoalign: it answered {short_line(line.strip(), 80)!r} for {file}, and not "
                "VQ, MQ, TA and Overall; use the published code"
            )
        return {metric: float(found[name]) for metric, name in SCORES.items()}


def videoalign_scores(
    load: Callable[[], VideoAlign], folder: Path, videos: SideVideos
) -> list[dict[str, float]]:
    """The scores of each video of one side, kept by the video's content and its prompt.

    Args:
        load: Starts VideoAlign, once a video has to be looked at.
        folder: The checkout.
        videos: The videos.
    """

    def score(file: Path, prompt: str) -> dict[str, float]:
        return load().score(file, prompt)

    name, label = f"{videos.side}_videoalign", f"VideoAlign of {videos.side}"
    return videos.scored(name, score, label, f"videoalign 1, {_identity(folder)}")


def _identity(folder: Path) -> str:
    """A hash of VideoAlign's code and weights."""
    weights = weights_folder(folder)
    files = [*sorted(folder.glob("*.py")), weights / CONFIG_FILE]
    files += sorted(file for file in weights.glob("checkpoint-*/*") if file.is_file())
    return hashlib.sha256("\n".join(content_hashes(files)).encode()).hexdigest()
