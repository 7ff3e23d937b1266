"""Has LightX2V, where it is installed, load an export, and run it if asked to.

    python -m tools.checks.check_lightx2v student_wan --model-path /models/Wan2.1-T2V-14B
    python -m tools.checks.check_lightx2v student_wan --model-path /models/Wan2.1 --video out.mp4

``student_wan`` is what ``lightx2v-sgmd export --format wan`` (or ``lora``) wrote; ``--model-path``
is the original folder of the teacher, for its text encoder and VAE. The export is checked against
its manifest first, then the places in its ``lightx2v.json`` are set to where it lies now.

Exit codes: 0 LightX2V took it, 1 it did not, 2 a mistake in what was given, 3 LightX2V is not
installed here, so that nothing is known.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from lightx2v_sgmd.files.lora_folder import lora_file_in
from lightx2v_sgmd.files.manifest import Manifest, read_manifest
from lightx2v_sgmd.system.errors import UserError
from tools.own_files import check_new
from weights import verify
from weights.formats.registry import FORMATS
from weights.formats.wan import LIGHTX2V_FILE

ABSENT = (
    "LightX2V is not installed here, so nothing was loaded. Install it from "
    "https://github.com/ModelTC/LightX2V and run this again."
)


def here(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The export's LightX2V job, with the weights' place as it is now."""
    job: dict[str, Any] = json.loads((folder / LIGHTX2V_FILE).read_text(encoding="utf-8"))
    if FORMATS[manifest.format].holds_adapters:
        job["lora_configs"] = [{"path": str(lora_file_in(folder)), "strength": 1.0}]
        return job
    files = FORMATS["wan"].weight_files(folder)
    key = "dit_quantized_ckpt" if manifest.dtype == "fp8" else "dit_original_ckpt"
    job[key] = str(files[0] if len(files) == 1 else folder)
    return job


def load(folder: Path, manifest: Manifest, model_path: Path, video: Path | None) -> None:
    """Has LightX2V build its pipeline on the export; raises whatever it raises."""
    from lightx2v import LightX2VPipeline  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as scratch:
        job = Path(scratch) / LIGHTX2V_FILE
        job.write_text(json.dumps(here(folder, manifest)), encoding="utf-8")
        pipeline = LightX2VPipeline(
            model_path=str(model_path), model_cls="wan2.1_distill", task="t2v"
        )
        # create_generator alone drops the video's size, which LightX2V's scheduler reads from the
        # configuration of the pipeline.
        pipeline.config_json = str(job)
        pipeline.create_generator(config_json=str(job))
        if video is not None:
            pipeline.generate(
                seed=0,
                prompt="A cat walks on the grass, realistic style.",
                negative_prompt="",
                save_result_path=str(video),
            )


def main(arguments: list[str] | None = None) -> int:
    """Runs the check and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--video", type=Path)
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    if options.video is not None:
        check_new(options.video)
    try:
        problems = verify(folder)
        manifest = read_manifest(folder)
        assert manifest is not None, folder
        if not (folder / LIGHTX2V_FILE).is_file():
            raise UserError(f"{folder}: is laid out for {manifest.format}; use --format wan")
        if not options.model_path.is_dir():
            raise UserError(f"--model-path: {options.model_path} is not a folder")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(problem)
    if problems:
        return 1
    print(f"{folder}: as it was written")
    if importlib.util.find_spec("lightx2v") is None:
        print(ABSENT)
        return 3
    try:
        load(folder, manifest, options.model_path.resolve(), options.video)
    except Exception:
        traceback.print_exc()
        print(f"LightX2V did not take {folder}")
        return 1
    print(f"LightX2V took {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
