"""A LightX2V user trains with this project's loop, by command or through LightX2V's registry."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from lightx2v_sgmd import lightx2v
from lightx2v_sgmd.families.teacher import open_teacher, with_defaults
from lightx2v_sgmd.files.yaml_loader import read_tree
from lightx2v_sgmd.job.from_lightx2v.convert import convert
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.system.errors import UserError


class Register(dict[str, Any]):
    """LightX2V's ``Register``, as far as it is used: calling it with a name gives a decorator."""

    def __call__(self, name: str) -> Any:
        def decorate(target: Any) -> Any:
            assert name not in self, f"{name} already exists."
            self[name] = target
            return target

        return decorate


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Stands for an installed ``lightx2v_train``."""
    module = types.ModuleType("lightx2v_train.utils.registry")
    register = Register(video_sgmd=object)
    module.TRAINER_REGISTER = register  # type: ignore[attr-defined]
    for name in ("lightx2v_train", "lightx2v_train.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "lightx2v_train.utils.registry", module)
    return register


def write_config(folder: Path, teacher: Path) -> Path:
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    adam = {"learning_rate": 1e-3, "adam_beta1": 0.0}
    dmd = {"height": 32, "width": 32, "num_frames": 5, "div_loss": {"enabled": True}}
    tree = {
        "model": {
            "name": "wan_t2v",
            "pretrained_model_name_or_path": str(teacher),
            "running_dtype": "fp32",
        },
        "data": {"train": {"data_path": [str(folder / "prompts.txt")], "batch_size": 2}},
        "training": {
            "method": "lightx2v_sgmd",
            "max_train_iters": 2,
            "gradient_accumulation_iters": 1,
            "save_every_iters": 2,
            "save_total_limit": 1,
            "lr_warmup_iters": 0,
            "output_dir": str(folder / "run"),
            "dmd": dmd,
            "student": {"train_type": "full", "optimizer": adam},
            "fake": {"train_type": "full", "optimizer": adam},
        },
        "inference": {"infer_every_iters": 2},
    }
    path = folder / "theirs.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def check_run(run: Path, config: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and {"fisher", "nr", "rc"} <= set(lines[0])
    job = convert(config).job
    assert job.schedule.solver is None  # their YAML leaves it to the family
    assert load_job(run / "job.yaml") == with_defaults(job, open_teacher(job.teacher)) != job


def test_the_command_trains_the_job_that_the_yaml_means(tiny_teacher: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_teacher)
    result = CliRunner().invoke(lightx2v.app, ["train", "--config", str(config), "--json"])
    assert result.exit_code == 0, result.output
    check_run(tmp_path / "run", config)
    assert "training.dmd.div_loss.enabled is True: this trainer has no such" in result.stderr
    assert json.loads(result.stdout) == {"run": str(tmp_path / "run")}
    # The YAML says that nothing is resumed, so the same command does not train over the run.
    again = CliRunner().invoke(lightx2v.app, ["train", "--config", str(config)])
    assert isinstance(again.exception, UserError)


def test_their_registry_builds_our_trainer(
    tiny_teacher: Path, tmp_path: Path, registry: Register
) -> None:
    assert lightx2v.register() and lightx2v.register()
    assert registry["lightx2v_sgmd"] is lightx2v.RegisteredTrainer
    assert registry["video_sgmd"] is object
    config = write_config(tmp_path, tiny_teacher)
    tree, _ = read_tree(config)
    trainer = registry["lightx2v_sgmd"]({**tree, "config_path": str(config)})
    trainer.set_model(object())
    trainer.set_data(object(), None)
    trainer.train()
    check_run(tmp_path / "run", config)


def test_without_their_package_nothing_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightx2v_train", None)
    assert not lightx2v.register()


def test_a_mistake_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        lightx2v.main(["train", "--config", str(tmp_path / "none.yaml")])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "none.yaml" in line
