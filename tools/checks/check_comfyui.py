"""Runs this package's nodes in a real ComfyUI, headless on a CPU, with a small random student.

    git clone https://github.com/comfyanonymous/ComfyUI     # and install its requirements
    python -m tools.checks.check_comfyui ComfyUI --python ComfyUI/venv/bin/python

The server is started on a folder of its own with this package's nodes in ``custom_nodes``. A
workflow loads a random network of Wan's fixed sizes, samples it in its four steps and saves a
video. The latents are compared with a plain Euler loop over diffusers' network, and the saved
record with what was asked for. Then a file without steps, and a LoRA of another network, must be
refused. Text and decoding are stand-ins, a node that this script writes: they are not ours.

Exit codes: 0 everything is right, 1 something is not, 2 a mistake in what was given.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import lightx2v_sgmd.comfyui
from lightx2v_sgmd.families.wan.keys import transformer_to_original
from lightx2v_sgmd.families.wan.original import VAE_CONFIG
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.schedule import Schedule
from tools.models.standard_wan import standard_transformer

SEED: Final = 5
LATENTS: Final = (1, 16, 2, 8, 8)
TOLERANCE: Final = 1e-4
"""Largest relative difference of latents in float32."""
_START_S: Final = 300.0
_RUN_S: Final = 120.0
_STAND_IN: Final = """
import torch
from safetensors.torch import load_file, save_file

class Text:
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "make", "check"
    INPUT_TYPES = classmethod(lambda cls: {"required": {"file": ("STRING", {})}})
    def make(self, file):
        return ([[load_file(file)["text"], {}]],)

class Frames:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "make", "check"
    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"latent": ("LATENT",), "file": ("STRING", {})}})
    def make(self, latent, file):
        save_file({"latents": latent["samples"].contiguous()}, file)
        return (torch.rand(5, 64, 64, 3),)

NODE_CLASS_MAPPINGS = {"CheckText": Text, "CheckFrames": Frames}
"""


def make_network() -> WanTransformer3DModel:
    """A random network with the sizes that ComfyUI takes from no configuration."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: WanTransformer3DModel = standard_transformer().eval()
    return network


def write_models(base: Path, network: WanTransformer3DModel, schedule: Schedule) -> None:
    """The files of ``base/models``: a student, the same without steps, and two LoRAs."""
    models, loras = base / "models" / "diffusion_models", base / "models" / "loras"
    models.mkdir(parents=True)
    loras.mkdir(parents=True)
    tensors = {
        f"model.diffusion_model.{transformer_to_original(name)}": value.contiguous()
        for name, value in network.state_dict().items()
    }
    save_file(tensors, models / "student.safetensors", metadata=schedule_metadata(schedule))
    save_file(tensors, models / "no_steps.safetensors", metadata={"format": "pt"})
    layer = "diffusion_model.blocks.0.self_attn.v"
    fits = {
        f"{layer}.lora_A.weight": torch.ones(4, 256) / 4,
        f"{layer}.lora_B.weight": torch.ones(256, 4) / 4,
    }
    save_file(fits, loras / "fits.safetensors", metadata=schedule_metadata(schedule))
    wide = {
        f"{layer}.lora_A.weight": torch.zeros(4, 512),
        f"{layer}.lora_B.weight": torch.zeros(512, 4),
    }
    save_file(wide, loras / "wide.safetensors", metadata=schedule_metadata(schedule))


@torch.no_grad()
def merge_lora(network: WanTransformer3DModel) -> None:
    """Adds to the network what the LoRA ``fits`` of ``write_models`` does."""
    network.blocks[0].attn1.to_v.weight += torch.full((256, 256), 4 / 4**2)


@torch.no_grad()
def expected_latents(network: WanTransformer3DModel, schedule: Schedule, text: Tensor) -> Tensor:
    """The latents of a plain Euler loop, as ComfyUI gives them to its VAE: ``LATENTS``."""
    x = torch.randn(LATENTS, generator=torch.manual_seed(SEED))
    sigmas = schedule.times
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        time_step = (1000 * sigma).expand(1)
        x = x + (following - sigma) * network(x, time_step, text, return_dict=False)[0]
    mean, std = (torch.tensor(VAE_CONFIG[f"latents_{name}"]) for name in ("mean", "std"))
    return x * std.view(1, -1, 1, 1, 1) + mean.view(1, -1, 1, 1, 1)


def workflow(base: Path, weights: str, lora: str = "none") -> dict[str, Any]:
    """The graph that is posted."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    size = {"width": 64, "height": 64, "length": 5, "batch_size": 1}
    return {
        "1": node("SGMDLoadStudent", weights=weights, lora=lora),
        "2": node("CheckText", file=str(base / "text.safetensors")),
        "3": node("EmptyHunyuanLatentVideo", **size),
        "4": node(
            "SGMDSampler",
            **{"model": ["1", 0], "student": ["1", 1], "positive": ["2", 0], "latent": ["3", 0]},
            seed=SEED,
        ),
        "5": node("CheckFrames", latent=["4", 0], file=str(base / "latents.safetensors")),
        "6": node(
            "SGMDSaveVideo",
            images=["5", 0],
            record=["4", 1],
            fps=16.0,
            filename_prefix="video/check",
        ),
    }


def post(url: str, graph: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Queues a workflow; returns the status and the answer."""
    body = json.dumps({"prompt": graph}).encode()
    request = urllib.request.Request(f"{url}/prompt", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def finished(url: str, name: str) -> dict[str, Any]:
    """A workflow's entry in the history, when it has ended."""
    until = time.monotonic() + _RUN_S
    while time.monotonic() < until:
        with urllib.request.urlopen(f"{url}/history/{name}", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        if name in found:
            entry: dict[str, Any] = found[name]
            return entry
        time.sleep(0.2)
    raise TimeoutError(f"the workflow has not ended after {_RUN_S:g} s")


def latents_problem(url: str, base: Path, expected: Tensor, lora: str = "none") -> str | None:
    """Runs the workflow; the problem if the latents are not the expected ones."""
    status, answer = post(url, workflow(base, "student.safetensors", lora))
    if status != 200:
        return f"the workflow was refused: {answer}"
    entry = finished(url, answer["prompt_id"])
    if entry["status"]["status_str"] != "success":
        return f"the workflow failed: {entry['status']['messages'][-1]}"
    made = load_file(base / "latents.safetensors")["latents"]
    difference = ((made - expected).norm() / expected.norm()).item()
    print(f"latents, LoRA {lora}: relative difference {difference:.1e} to a plain Euler loop")
    if difference < TOLERANCE:
        return None
    return f"latents with LoRA {lora} differ by {difference:.1e}, more than {TOLERANCE:g}"


def check(
    url: str, base: Path, expected: Tensor, with_lora: Tensor, schedule: Schedule
) -> list[str]:
    """Runs the workflows; returns what is wrong."""
    found = [
        latents_problem(url, base, expected),
        latents_problem(url, base, with_lora, "fits.safetensors"),
    ]
    problems = [problem for problem in found if problem is not None]
    if problems:
        return problems
    video = min((base / "output" / "video").glob("check_*.mp4"))
    record = json.loads(video.with_suffix(".json").read_text(encoding="utf-8"))
    print(f"saved: {video.name}, {video.stat().st_size} bytes, {sorted(record)}")
    wanted = {"weights": "student.safetensors", "seed": SEED, "schedule": schedule.to_dict()}
    problems += [
        f"the record says {key} {record.get(key)!r}, not {value!r}"
        for key, value in wanted.items()
        if record.get(key) != value
    ]
    status, answer = post(url, workflow(base, "no_steps.safetensors"))
    said = json.dumps(answer)
    print(f"weights without steps: status {status}")
    if status != 400 or "carries no schedule" not in said:
        problems.append(f"weights without steps were not refused by name: {status} {said[:300]}")
    status, answer = post(url, workflow(base, "student.safetensors", "wide.safetensors"))
    said = json.dumps(finished(url, answer["prompt_id"])) if status == 200 else json.dumps(answer)
    print(
        "LoRA of another network:", "refused" if "load the LoRA's own base" in said else said[:300]
    )
    if "load the LoRA's own base" not in said:
        problems.append("a LoRA of another network was not refused")
    return problems


def run(comfyui: Path, python: str, base: Path) -> list[str]:
    """Starts the server, checks, and stops it."""
    schedule, network = Schedule(), make_network()
    write_models(base, network, schedule)
    nodes = base / "custom_nodes"
    nodes.mkdir()
    (nodes / "lightx2v_sgmd").symlink_to(Path(lightx2v_sgmd.comfyui.__file__).parent)
    (nodes / "stand_in.py").write_text(_STAND_IN, encoding="utf-8")
    text = torch.randn(1, 20, 4096, generator=torch.Generator().manual_seed(1))
    save_file({"text": text}, base / "text.safetensors")
    expected = expected_latents(network, schedule, text)
    merge_lora(network)
    with_lora = expected_latents(network, schedule, text)
    changed = ((with_lora - expected).norm() / expected.norm()).item()
    assert changed > 100 * TOLERANCE, f"the LoRA changes latents by {changed:.1e} only"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "main.py", "--cpu", "--force-fp32", "--disable-auto-launch"]
    command += ["--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
    package = Path(lightx2v_sgmd.__file__).parent.parent
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with (base / "log.txt").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(command, cwd=comfyui, env=environment, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url, server)
            return check(url, base, expected, with_lora, schedule)
        except Exception as error:
            tail = (base / "log.txt").read_text(encoding="utf-8")[-3000:]
            return [f"{type(error).__name__}: {error}\n{tail}"]
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        if server.poll() is not None:
            raise RuntimeError(f"ComfyUI ended with {server.returncode} before it answered")
        try:
            with urllib.request.urlopen(f"{url}/system_stats", timeout=5) as answer:
                system = json.load(answer)["system"]
                print(
                    f"ComfyUI {system.get('comfyui_version')}, PyTorch {system['pytorch_version']}"
                )
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"ComfyUI has not answered after {_START_S:g} s")


def main() -> None:
    """Runs the check."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("comfyui", type=Path, help="folder of ComfyUI, with main.py")
    parser.add_argument(
        "--python", default=sys.executable, help="Python with ComfyUI's requirements; default this"
    )
    args = parser.parse_args()
    if not (args.comfyui / "main.py").is_file():
        print(f"error: {args.comfyui}: has no main.py; give a folder of ComfyUI", file=sys.stderr)
        sys.exit(2)
    base = Path(tempfile.mkdtemp(prefix="check_comfyui"))
    try:
        problems = run(args.comfyui.resolve(), args.python, base)
    finally:
        shutil.rmtree(base)
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
