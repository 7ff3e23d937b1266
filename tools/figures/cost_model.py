"""App. C of SGMD (arXiv 2605.30116): what an iteration costs, as the paper counts and as ours run.

    python -m tools.figures.cost_model --methods sgmd,dmd2

Ours are counted by hooks on the networks in real iterations on the bundled teacher, every step of
the rollout taking its turn to carry gradient, so that their mean is the expectation. Both counts
are priced with the paper's seconds.

The paper's unit: a short backward is one network's, a long one the generator's through the fake
score as well. Its 33 forwards for DMD2 are 5.5 (rollout 2.5, fake score 1, guided teacher 2) for
each of 1 + 5 updates. A fake-score update regresses on the student's own video and asks no teacher:
those ten passes are in the paper's count and in no run of ours. Its 6.5 for SGMD ask the fake score
twice at the same x_t, where one graph serves both updates.

A short backward of 15 s is three forwards of 5 s: recomputing, inputs, weights. So each count's
``forward_equivalents`` has a price too; it charges a long backward for what it runs: no weight
gradients in the fake score.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from distill.counting import PassCounter
from distill.data import Batches, load_prompts
from distill.trainer import Trainer
from lightx2v_sgmd.families.teacher import open_teacher, with_defaults
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.parallel import (
    FAKE_SCORE,
    STUDENT,
    TEACHER,
    Ranks,
    StrategySettings,
    open_strategy,
)
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path
from lightx2v_sgmd.text.encoding import encode_prompts

FORWARD_S, SHORT_S, LONG_S = 5.0, 15.0, 30.0


@dataclass(frozen=True)
class Cost:
    """An iteration's passes.

    Attributes:
        name: Whose.
        forwards: Forward passes of all networks.
        short: Backward passes of an update that involve its own network alone.
        long: Those of the student that lead through another network.
        by_role: Forwards by role; empty in the paper's counts.
        forward_equivalents: With checkpointing on: a forward, a recomputed one, a backward to the
            inputs and one to the weights are 1 each. None in the paper's counts.
    """

    name: str
    forwards: float
    short: float
    long: float
    by_role: dict[str, float]
    forward_equivalents: float | None = None

    @property
    def seconds(self) -> float:
        """The time of an iteration at the paper's prices."""
        return self.forwards * FORWARD_S + self.short * SHORT_S + self.long * LONG_S


def paper_costs(updates: int = 5) -> list[Cost]:
    """App. C's two counts."""
    rollout, fake_score, teacher = 2.5, 1.0, 2.0
    one_update = rollout + fake_score + teacher
    return [
        Cost("sgmd", one_update + fake_score, 1, 1, {}),
        Cost("dmd2", one_update * (1 + updates), 1 + updates, 0, {}),
    ]


def every_exit(job: Job) -> Callable[[int], int]:
    """The exit step by exit index, which moves on with the iteration and the update in it."""
    per_iteration = 1 + job.method.fake_score_updates * job.method.fresh_rollouts
    return lambda index: (index // per_iteration + index % per_iteration) % len(job.steps)


def count(job: Job) -> Cost:
    """Runs an iteration for each step of the schedule and counts the networks' passes."""
    ranks, model = Ranks(), open_teacher(job.teacher)
    job = with_defaults(job, model)
    texts = [*load_prompts(job), model.negative_prompt_for(job.teacher.negative_prompt)]
    *rows, negative = encode_prompts(model, texts, ranks, torch.float32, None)
    shape = model.latent_shape(job.video.height, job.video.width, job.video.frames)
    strategy = open_strategy("local", model, StrategySettings.of(job), ranks, fold_text=False)
    batches = Batches(job, rows, negative, shape, ranks, exit_order=every_exit(job))
    trainer = Trainer(job, strategy, batches)
    counter = PassCounter(strategy.networks, job.train.micro_batch)
    iterations = len(job.steps)
    for iteration in range(iterations):
        trainer.iterate(iteration)
    total = counter.take()
    strategy.close()

    def mean(name: str, role: str) -> float:
        return float(total[name][role]) / iterations

    roles = (STUDENT, FAKE_SCORE, TEACHER)
    updates = {role: mean("weight_backwards", role) for role in (STUDENT, FAKE_SCORE)}
    led_through = sum(
        mean("backwards", role) - updates.get(role, 0) for role in (FAKE_SCORE, TEACHER)
    )
    long = updates[STUDENT] if led_through > 0 else 0.0
    forwards = {role: mean("forwards", role) for role in roles}
    return Cost(
        job.method.name,
        sum(forwards.values()),
        sum(updates.values()) - long,
        long,
        forwards,
        total["forward_equivalents"] / iterations,
    )


def job_of(method: str, teacher: str, folder: Path) -> Job:
    """The shipped job of a method on a small batch, with gradient checkpointing as in the paper."""
    prompts = folder / "prompts.txt"
    prompts.write_text("a red circle moving left\n", encoding="utf-8")
    changes = {
        "teacher.path": teacher,
        "data.prompts": prompts,
        "train.micro_batch": 1,
        "parallel.gradient_checkpointing": "true",
        "output.dir": folder,
    }
    overrides = [f"{key}={value}" for key, value in changes.items()]
    return load_job(config_path(f"sprites_{method}.yaml"), overrides)


def report(paper: Sequence[Cost], ours: Sequence[Cost]) -> str:
    """The table."""
    heads = ("forwards", "short", "long", "seconds", "fwd-equiv.", "at 5 s each")
    lines = ["count  method      " + "".join(f"{head:>12}" for head in heads)]
    for source, costs in (("paper", paper), ("ours", ours)):
        for cost in costs:
            cells = [cost.forwards, cost.short, cost.long, cost.seconds]
            if cost.forward_equivalents is not None:
                cells += [cost.forward_equivalents, cost.forward_equivalents * FORWARD_S]
            lines.append(f"{source:7}{cost.name:12}" + "".join(f"{cell:12.2f}" for cell in cells))
    lines.append("")
    for source, costs in (("paper", paper), ("ours", ours)):
        for name, ratio in ratios(costs).items():
            lines.append(f"{source}: {name} {ratio:.2f}")
    for cost in ours:
        roles = ", ".join(f"{role} {passes:g}" for role, passes in cost.by_role.items())
        lines.append(f"forwards of {cost.name}: {roles}")
    return "\n".join(lines)


def ratios(costs: Sequence[Cost]) -> dict[str, float]:
    """The ratio of DMD2's cost to SGMD's, if both are there."""
    by_name = {cost.name: cost for cost in costs}
    if not {"sgmd", "dmd2"} <= by_name.keys():
        return {}
    sgmd, dmd2 = by_name["sgmd"], by_name["dmd2"]
    found = {"dmd2 / sgmd in seconds": dmd2.seconds / sgmd.seconds}
    if sgmd.forward_equivalents and dmd2.forward_equivalents:
        quotient = dmd2.forward_equivalents / sgmd.forward_equivalents
        found["dmd2 / sgmd in forward-equivalents"] = quotient
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="sgmd,dmd2", help="which to run: %(default)s")
    parser.add_argument("--teacher", default="sprites", help="the bundled one, a folder or hub id")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    options = parser.parse_args(arguments)
    try:
        with TemporaryDirectory() as folder:
            jobs = [
                job_of(name, options.teacher, Path(folder)) for name in options.methods.split(",")
            ]
            ours = [count(job) for job in jobs]
    except UserError as error:
        parser.error(str(error))
    paper = paper_costs()
    if not options.json:
        print(report(paper, ours))
        return
    told = {
        source: {
            "costs": [{**asdict(cost), "seconds": cost.seconds} for cost in costs],
            "ratios": ratios(costs),
        }
        for source, costs in (("paper", paper), ("ours", ours))
    }
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
