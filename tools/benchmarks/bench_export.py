"""Measures an export: speed against the disk's own, and the most memory that it takes.

    python -m tools.benchmarks.bench_export --shape 1.3b --format wan --folder /somewhere/with/room

A random student of the published shape is written first, tensor by tensor: as a run's checkpoint
(float32), or with ``--source export`` as exported weights (bf16), which takes half the room. It
stays in the folder for the next measurement; ``--clean`` removes everything in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from lightx2v_sgmd.families.sources.hub_configs import known_transformer_config
from lightx2v_sgmd.families.wan.opening import bundled_teacher, open_wan
from lightx2v_sgmd.files.checkpoint import PendingCheckpoint
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.outputs import rename_new, sha256_file
from lightx2v_sgmd.schedule import Schedule

SHAPES = {
    "sprites": None,
    "1.3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "14b": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
}
JOB = """
teacher: {{path: {teacher}, guidance_scale: 5.0}}
method: {{name: sgmd}}
data: {{prompts: sprites}}
video: {{height: 480, width: 832, num_frames: 81}}
train: {{iterations: 20}}
output: {{dir: {run}}}
"""
BLOCK = 16 * 2**20


def make_teacher(folder: Path, shape: str, layers: int | None) -> Path:
    """The configuration of the shape, with the bundled teacher's small VAE and text encoder."""
    if not folder.exists():
        shutil.copytree(bundled_teacher(), folder, ignore=shutil.ignore_patterns("transformer"))
        config = known_transformer_config(hub_id) if (hub_id := SHAPES[shape]) else None
        config = config or open_wan(bundled_teacher()).transformer_config
        config |= {"num_layers": layers} if layers else {}
        (folder / "transformer").mkdir()
        text = json.dumps({"_class_name": "WanTransformer3DModel", **config})
        (folder / "transformer" / "config.json").write_text(text)
    return folder


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> Any:
    """Random weights of a believable size, one by one; cut from one pool, for speed."""
    pool = 0.02 * torch.randn(2**24, generator=torch.Generator().manual_seed(0))
    for name, shape in shapes.items():
        size = torch.Size(shape).numel()
        pool = pool.roll(12345)
        yield name, pool.repeat(-(-size // pool.numel()))[:size].view(shape)


def make_checkpoint(run: Path, teacher: Path) -> Path:
    """A run with one checkpoint, written as training writes it."""
    final = run / "checkpoints" / "step_000020"
    if final.exists():
        return run
    with torch.device("meta"):
        network = open_wan(teacher).build_transformer()
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    pending = PendingCheckpoint(final)
    pending.begin()
    metadata = schedule_metadata(Schedule())
    entries = pending.write_tensors("student.safetensors", shapes, random_tensors(shapes), metadata)
    entries |= pending.write_text("job.yaml", JOB.format(teacher=teacher, run=run))
    entries |= pending.write_text("trainer.json", json.dumps({"step": 20}))
    pending.publish(entries)
    return run


def own_folder(folder: Path) -> Path:
    """A folder that this benchmark has made, and may remove again; ends it for any other."""
    mark = folder / ".bench_export"
    if folder.is_dir() and any(folder.iterdir()) and not mark.is_file():
        sys.exit(f"error: --folder: {folder} holds other files; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return folder


def make_export(folder: Path, teacher: Path) -> Path:
    """Exported weights, bf16, as ``--format wan`` writes them."""
    if folder.exists():
        return folder
    from lightx2v_sgmd.files.manifest import Manifest, VideoFacts
    from lightx2v_sgmd.files.tensors.safetensors_writer import ShardWriter, split
    from weights.formats.base import STEM
    from weights.formats.registry import FORMATS
    from weights.io.tensors import network_shapes

    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shapes = network_shapes(open_wan(teacher))
    layout = FORMATS["wan"].layout("bf16")
    parts = layout.all_parts(shapes)
    index = f"{STEM}.safetensors.index.json"
    shards = split(parts, STEM, "5GB")
    writer = ShardWriter(partial, shards, parts, schedule_metadata(Schedule()), index)
    for name, tensor in random_tensors(shapes):
        writer.write(layout.encode(name, tensor))
    writer.finish()
    writer.close()
    hashes = {path.name: sha256_file(path) for path in partial.iterdir()}
    Manifest(
        method={"name": "sgmd", "options": {}},
        teacher=str(teacher),
        schedule=Schedule(),
        guidance_scale=5.0,
        video=VideoFacts(480, 832, 81, 16.0),
        step=20,
        ema=False,
        dtype="bf16",
        sha256=hashes,
        format="wan",
    ).write(partial)
    rename_new(partial, folder)
    return folder


def disk_speed(path: Path, total: int) -> float:
    """Bytes per second of writing a file from one end to the other and putting it on the disk.

    As much as the export writes, before and after it. The file stays until all is measured: a
    virtual disk takes blocks that were just freed several times faster than new ones, and the
    export would get either.
    """
    block = os.urandom(BLOCK)
    start = time.monotonic()
    with path.open("wb", buffering=0) as file:
        for _ in range(total // BLOCK):
            file.write(block)
        os.fsync(file.fileno())
    taken = time.monotonic() - start
    return total // BLOCK * BLOCK / taken


def nbytes_of(source: Path) -> int:
    """The approximate size of a bf16 export of a source."""
    total = sum(path.stat().st_size for path in source.rglob("*.safetensors"))
    return max(BLOCK, total // 2 if (source / "checkpoints").is_dir() else total)


def watch(process: subprocess.Popen[bytes], most: dict[str, int]) -> None:
    """Notes the largest memory that a process has, by kind, until it ends."""
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            kind, _, value = line.partition(":")
            if kind in ("RssAnon", "VmRSS"):
                most[kind] = max(most.get(kind, 0), int(value.split()[0]) * 1024)
        time.sleep(0.05)


def child(source: str, format: str, out: str, dtype: str | None) -> None:
    """The export itself, in a process of its own; prints when its parts ended."""
    from weights import export, exporting

    patched: Any = exporting

    marks = {"start": time.monotonic()}
    note, check = patched._check_space, patched.differences

    def opened(*args: Any) -> None:
        note(*args)
        marks["opened"] = time.monotonic()

    def written(*args: Any) -> list[str]:
        marks["written"] = time.monotonic()
        return check(*args)

    patched._check_space, patched.differences = opened, written
    export(source, format, out, dtype=dtype, ema=False, overwrite=True)
    marks["checked"] = time.monotonic()
    print(json.dumps(marks))


def main() -> None:
    """Measures and prints one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="1.3b")
    parser.add_argument("--layers", type=int, help="Fewer blocks than the shape has.")
    parser.add_argument("--format", default="wan")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--source", choices=("checkpoint", "export"), default="checkpoint")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], options.format, options.child[1], options.dtype)
        return
    folder = own_folder(options.folder.resolve() / options.shape)
    teacher = make_teacher(folder / "teacher", options.shape, options.layers)
    made = {"checkpoint": make_checkpoint, "export": make_export}[options.source]
    source = made(folder / options.source, teacher)
    out = folder / "out"
    command = [sys.executable, "-m", "tools.benchmarks.bench_export", "--folder", str(folder)]
    command += ["--format", options.format, "--child", str(source), str(out)]
    command += ["--dtype", options.dtype] if options.dtype else []
    amount = nbytes_of(source)
    speeds = [disk_speed(folder / "before.bin", amount)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    most: dict[str, int] = {}
    watcher = threading.Thread(target=watch, args=(process, most))
    watcher.start()
    printed, _ = process.communicate()
    watcher.join()
    if process.returncode:
        sys.exit(process.returncode)
    marks = json.loads(printed)
    writing_s = marks["written"] - marks["opened"]
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    speeds.append(disk_speed(folder / "after.bin", amount))
    speed = sum(speeds) / len(speeds)
    for name in ("before.bin", "after.bin"):
        (folder / name).unlink()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    row = {
        "shape": options.shape,
        "layers": open_wan(teacher).transformer_config["num_layers"],
        "source": options.source,
        "format": options.format,
        "dtype": options.dtype or "bf16",
        "written_gb": round(written / 1e9, 2),
        "opening_s": round(marks["opened"] - marks["start"], 1),
        "writing_s": round(writing_s, 1),
        "checking_s": round(marks["checked"] - marks["written"], 1),
        "writing_mb_s": round(written / 1e6 / writing_s, 1),
        "processor_s": round(used.ru_utime + used.ru_stime, 1),
        "disk_mb_s": [round(each / 1e6, 1) for each in speeds],
        "share_of_disk": round(written / writing_s / speed, 2),
        "most_anonymous_gib": round(most["RssAnon"] / 2**30, 2),
        "most_resident_gib": round(most["VmRSS"] / 2**30, 2),
    }
    print(json.dumps(row, indent=2))
    shutil.rmtree(folder if options.clean else out)


if __name__ == "__main__":
    main()
