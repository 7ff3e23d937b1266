"""The Slurm templates, run against commands that only note how they were called."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from lightx2v_sgmd.job.loading import job_keys

FOLDER = Path(__file__).resolve().parent.parent / "tools" / "slurm"
TEMPLATES = sorted(FOLDER.glob("*.sbatch"))
SLURM = {
    "SLURM_JOB_ID": "42",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_GPUS_ON_NODE": "8",
}
# Runs until it is told to stop, and then takes a moment to save.
RUN = """
trap 'sleep 0.3; echo saved >> "$NOTES"; exit $CODE' USR1
echo "$0 $*" >> "$NOTES"
for _ in $(seq $TICKS); do sleep 0.05; done
exit $LEFT
"""
STANDINS = {
    "scontrol": 'if [ "$1" = show ]; then echo gpu07; echo gpu08; else echo "$*" >> "$NOTES"; fi',
    "srun": 'shift; exec "$@"',
    "python": RUN,
    "lightx2v-sgmd": RUN,
}


def execute(
    template: Path, folder: Path, told: bool, left: int = 0, code: int = 130
) -> tuple[int, list[str]]:
    """Runs a template; ``told`` sends SIGUSR1. Returns its exit code and what was called."""
    commands = folder / "venv" / "bin"
    commands.mkdir(parents=True)
    for name, script in STANDINS.items():
        (commands / name).write_text(f"#!/bin/bash\n{script}\n")
        (commands / name).chmod(stat.S_IRWXU)
    (commands / "activate").write_text(f'PATH="{commands}:$PATH"\n')
    notes = folder / "notes"
    process = subprocess.Popen(
        ["bash", str(template), "job.yaml", "--set", "train.seed=3"],
        env={
            **os.environ,
            **SLURM,
            "SGMD_VENV": str(folder / "venv"),
            "NOTES": str(notes),
            "TICKS": "12000" if told else "2",
            "LEFT": str(left),
            "CODE": str(code),
        },
    )
    if told:
        while not notes.exists():
            assert process.poll() is None, "the template ended before it started anything"
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
    return process.wait(timeout=600), notes.read_text().splitlines()


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_the_templates_are_sound(template: Path) -> None:
    subprocess.run(["bash", "-n", str(template)], check=True)
    text = template.read_text()
    assert "#SBATCH --signal=B:USR1@120" in text and "#SBATCH --requeue" in text
    keys = re.findall(r"--set ([a-z_.]+)=", text)
    assert keys and set(keys) <= set(job_keys())


def test_there_are_templates() -> None:
    assert [template.name for template in TEMPLATES] == ["one_node.sbatch", "torchrun.sbatch"]


# torchrun has no exit code of its own for a run that was told to stop.
@pytest.mark.parametrize(("name", "code"), [("one_node.sbatch", 130), ("torchrun.sbatch", 1)])
def test_a_job_that_is_out_of_time_saves_and_goes_back_into_the_queue(
    tmp_path: Path, name: str, code: int
) -> None:
    left, called = execute(FOLDER / name, tmp_path, told=True, code=code)
    assert called[1:] == ["saved", "requeue 42"] and left == 0


@pytest.mark.parametrize("name", ["one_node.sbatch", "torchrun.sbatch"])
@pytest.mark.parametrize("left", [0, 2])
def test_a_job_that_ends_by_itself_is_not_repeated(tmp_path: Path, name: str, left: int) -> None:
    code, called = execute(FOLDER / name, tmp_path, told=False, left=left)
    assert code == left and len(called) == 1


def test_what_torchrun_is_given(tmp_path: Path) -> None:
    _, (line,) = execute(FOLDER / "torchrun.sbatch", tmp_path, told=False)
    words = line.split()[1:]
    assert words[:2] == ["-m", "torch.distributed.run"]
    given = get_args_parser().parse_args(words[2:])
    assert (given.nnodes, given.node_rank, given.nproc_per_node) == ("2", 1, "8")
    assert (given.master_addr, given.master_port, given.max_restarts) == ("gpu07", 29500, 0)
    assert "SIGUSR1" in given.signals_to_handle and given.shutdown_timeout == 110
    assert given.module and given.training_script == "lightx2v_sgmd"
    own = ["distill", "job.yaml", "--set", "train.seed=3", "--set", "parallel.strategy=zero3"]
    assert given.training_script_args == own


def test_one_node_starts_a_rank_for_each_gpu(tmp_path: Path) -> None:
    _, (line,) = execute(FOLDER / "one_node.sbatch", tmp_path, told=False)
    command = "distill job.yaml --set train.seed=3 --nproc 8 --set parallel.strategy=zero3"
    assert line.endswith(f"lightx2v-sgmd {command}")
