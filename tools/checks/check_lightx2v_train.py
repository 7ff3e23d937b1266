"""Checks the plugin against a checkout of LightX2V: its YAMLs, its keys and its trainer registry.

    git clone https://github.com/ModelTC/LightX2V
    python -m tools.checks.check_lightx2v_train LightX2V

Three things are checked. Every key of its Wan2.1 YAMLs with the methods ``video_sgmd`` and
``video_dmd`` is mapped or has a reason, and each such YAML becomes a job. Its registry, imported
from the checkout, builds our trainer by its name. That trainer runs one iteration on the bundled
teacher. Exit code 1 if something fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from lightx2v_sgmd.files.yaml_loader import read_tree
from lightx2v_sgmd.job.from_lightx2v.convert import convert
from lightx2v_sgmd.job.from_lightx2v.keys import COMMIT, METHODS, MODELS
from lightx2v_sgmd.lightx2v import NAME, register
from lightx2v_sgmd.system.errors import UserError

_CONFIG: dict[str, Any] = {
    "model": {
        "name": "wan_t2v",
        "pretrained_model_name_or_path": "sprites",
        "running_dtype": "fp32",
    },
    "data": {"train": {"data_path": ["prompts.txt"]}},
    "training": {
        "method": NAME,
        "max_train_iters": 1,
        "gradient_accumulation_iters": 1,
        "save_every_iters": 1,
        "save_total_limit": 1,
        "lr_warmup_iters": 0,
        "dmd": {"height": 64, "width": 64, "num_frames": 5},
        "student": {"train_type": "full", "optimizer": {"learning_rate": 1e-6}},
        "fake": {"train_type": "full", "optimizer": {"learning_rate": 1e-6}},
    },
    "inference": {"method": "none"},
}


def check_configs(checkout: Path) -> list[str]:
    """The problems of the checkout's YAMLs."""
    problems, count = [], 0
    for path in sorted((checkout / "lightx2v_train" / "configs" / "train").rglob("*.yaml")):
        tree, _ = read_tree(path)
        if tree["training"]["method"] not in METHODS or tree["model"]["name"] not in MODELS:
            continue
        count += 1
        try:
            made = convert(path)
        except UserError as error:
            problems.append(str(error))
            continue
        problems += [str(note) for note in made.notes if "reads no such key" in note.reason]
        differing = [note.key for note in made.notes if note.differs]
        print(
            f"{path.name}: {made.job.method.name}; differs by {', '.join(differing) or 'nothing'}"
        )
    return problems if count else [f"{checkout}: has no YAML of {', '.join(METHODS)} for Wan2.1"]


def check_registry(checkout: Path, work: Path) -> list[str]:
    """The problems of building and running our trainer through the checkout's registry."""
    sys.path.insert(0, str(checkout / "lightx2v_train"))
    if not register():
        return [f"{checkout}: lightx2v_train.utils.registry cannot be imported"]
    from lightx2v_train.utils.registry import build_trainer  # type: ignore[import-not-found]

    (work / "prompts.txt").write_text("a red circle moving left\n", encoding="utf-8")
    config = {**_CONFIG, "data": {"train": {"data_path": [str(work / "prompts.txt")]}}}
    config["training"] = {**_CONFIG["training"], "output_dir": str(work / "run")}
    trainer = build_trainer(config)
    trainer.set_model(None)
    trainer.set_data(None)
    run = trainer.train()
    print(f"{type(trainer).__module__}.{type(trainer).__name__} trained {run}")
    lines = (work / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [] if len(lines) == 1 else [f"the run has {len(lines)} iterations, not 1"]


def main() -> None:
    """Runs the checks."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("checkout", type=Path, help=f"folder of LightX2V, read at {COMMIT}")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        problems = check_configs(args.checkout) + check_registry(args.checkout, Path(work))
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
