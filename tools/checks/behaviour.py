"""Records what the program computes, so that a refactoring can be shown to change nothing.

    python -m tools.checks.behaviour --out before.json     # on the commit before
    python -m tools.checks.behaviour --against before.json # on the commit after

Every shipped method trains the bundled teacher for three seeded iterations on one thread: the
losses and gradient norms are recorded as numbers, the trained weights as a hash. One student is
exported in every format and type, and each tensor file is hashed without its metadata; the teacher
and the student make videos, whose latents and frames are hashed. Two records are comparable only if
they come from one machine with one set of libraries.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.own_files import check_own, write_own

METHODS = (
    *("sgmd", "sgmd_lora", "dmd2", "tsg_fisher", "tsg_sim", "sid", "adm", "adp"),
    *("dmdx", "dmdx_4_steps"),
)
"""The jobs ``configs/sprites_*.yaml`` that are trained."""
SMALL = (
    "train.iterations=3",
    "train.micro_batch=2",
    "train.checkpoint_every=3",
    "train.sample_every=3",
)
EXPORTS = (
    *(("sgmd", "diffusers", dtype) for dtype in ("fp32", "bf16", "fp16")),
    *(("sgmd", "wan", dtype) for dtype in ("fp32", "bf16", "fp16", "fp8")),
    *(("sgmd", "comfyui", dtype) for dtype in ("fp32", "bf16", "fp16", "fp8", "fp8-legacy")),
    *(("sgmd_lora", "lora", dtype) for dtype in ("fp32", "bf16", "fp16")),
    ("sgmd", "lora", "fp32"),
    ("sgmd_lora", "diffusers", "fp32"),
)
"""A run, the format of its export and the number format: every format in every number format."""
MARK = '"sgmd_lora lora bf16": {'
"""A text by which a record is known from other files."""
NOT_COMPARED = ("seconds", "sampling_seconds", "cpu_seconds", "peak_memory_gib")
"""Keys of ``metrics.jsonl`` that differ from run to run."""


def tensors_digest(path: Path) -> str:
    """The sha256 of a safetensors file's tensors: names, types, shapes and bytes."""
    import torch
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name).contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """The digest of each safetensors file in a folder, by its path there."""
    files = sorted(folder.rglob("*.safetensors"))
    return {str(file.relative_to(folder)): tensors_digest(file) for file in files}


def losses(run: Path) -> list[dict[str, Any]]:
    """A run's metrics without those that depend on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in NOT_COMPARED} for row in rows]


def command(*arguments: str) -> None:
    """Runs ``lightx2v-sgmd`` in a process of its own, a fork of this one.

    Libraries are imported once, which takes longer than most of the commands.
    """
    process = multiprocessing.get_context("fork").Process(target=_run, args=(arguments,))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"lightx2v-sgmd {' '.join(arguments)}: exit code {process.exitcode}")


def _run(arguments: tuple[str, ...]) -> None:
    from lightx2v_sgmd.cli.main import run

    sys.exit(run(list(arguments)))


def record(work: Path) -> dict[str, Any]:
    """Trains, exports and generates in a folder, and returns the record of it."""
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5EncoderModel

    import distill
    import lightx2v_sgmd
    import weights as formats
    from infer import Options

    assert all((AutoencoderKLWan, WanTransformer3DModel, UMT5EncoderModel, distill, formats))
    torch.set_num_threads(1)
    pairs = work / "pairs"
    collect = ["collect-pairs", "configs/sprites_adp.yaml", "--out", str(pairs), "--count", "8"]
    collect += ["--shard", "8", "--steps", "10", "--prompts", "sprites"]
    command(*collect, "--quiet")
    found: dict[str, Any] = {"pairs": folder_digests(pairs), "training": {}, "exports": {}}
    for method in METHODS:
        run = work / method
        settings = [*SMALL, f"output.dir={run}"]
        if method in ("adp", "dmdx", "dmdx_4_steps"):
            settings.append(f"data.latents={pairs}")
        if method.startswith("dmdx"):
            settings.append("method.pretraining=2")
        flags = [part for setting in settings for part in ("--set", setting)]
        command("distill", f"configs/sprites_{method}.yaml", "--quiet", *flags)
        checkpoint = run / "checkpoints" / "step_000003"
        found["training"][method] = {"losses": losses(run), "weights": folder_digests(checkpoint)}
    for source, format_, dtype in EXPORTS:
        out = work / f"{source}_{format_}_{dtype}"
        flags = ["--format", format_, "--dtype", dtype, "--out", str(out), "--quiet"]
        command("export", str(work / source), *flags)
        found["exports"][f"{source} {format_} {dtype}"] = folder_digests(out)
    found["videos"] = {}
    for name, weights in {
        "teacher": "sprites",
        "student": str(work / "sgmd_diffusers_fp32"),
    }.items():
        assumed = "sgmd" if name == "teacher" else None
        student = lightx2v_sgmd.load_student(weights, Options(assume_schedule=assumed))
        made = student.generate(
            ["a red circle moving left fast", "a large blue square moving up slowly"],
            [3, 4],
            height=32,
            width=32,
            num_frames=9,
        )
        found["videos"][name] = {
            "latents": hashlib.sha256(made.latents.numpy().tobytes()).hexdigest(),
            "frames": [hashlib.sha256(video.tobytes()).hexdigest() for video in made.videos],
        }
    return found


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """The places in which two records differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in sorted({*before, *after})
            for line in differences(before.get(key), after.get(key), f"{path}/{key}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            line
            for index, (one, other) in enumerate(zip(before, after, strict=True))
            for line in differences(one, other, f"{path}/{index}")
        ]
    return [] if before == after else [f"{path}: {before} became {after}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Records, and compares if asked to; the exit code is 1 if anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="file to write the record to")
    parser.add_argument("--against", type=Path, help="record to compare with")
    args = parser.parse_args(arguments)
    if args.out is not None:
        check_own(args.out, MARK)
    with tempfile.TemporaryDirectory() as work:
        found = record(Path(work))
    if args.out is not None:
        write_own(args.out, json.dumps(found, indent=1) + "\n", MARK)
    if args.against is None:
        return 0
    lines = differences(json.loads(args.against.read_text()), json.loads(json.dumps(found)))
    print("\n".join(lines) or "equal")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
