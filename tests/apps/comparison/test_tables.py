"""Rows from measurements and costs that are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightx2v_sgmd.apps.comparison import measuring, tables
from lightx2v_sgmd.apps.comparison.columns import QUALITY, markdown, table
from lightx2v_sgmd.apps.comparison.measuring import Measured
from lightx2v_sgmd.apps.comparison.plan import Plan
from lightx2v_sgmd.apps.comparison.planning import make_plan
from lightx2v_sgmd.apps.comparison.plots import plot
from lightx2v_sgmd.measures.frechet import gaussian_distance
from lightx2v_sgmd.system.errors import UserError
from tests.training import job_file


def measured(level: float, seed: int, count: int = 40) -> Measured:
    """Features around ``level``; flow and diversity say the level."""
    rng = np.random.default_rng(seed)
    features = (level + rng.normal(size=(count, 3))).tolist()
    return Measured(4, features, [level] * count, [level > 1] * count, None, [level / 10], 1.0)


def trace(iterations: int, equivalents: float, seconds: float) -> str:
    counts = {"student": 2.0, "teacher": 2.0}
    line = {
        "forwards": counts,
        "recomputed": dict.fromkeys(counts, 0.0),
        "backwards": {"student": 1.0, "teacher": 0.0},
        "weight_backwards": {"student": 1.0},
        "forward_equivalents": equivalents,
        "cpu_seconds": seconds,
        "seconds": 2 * seconds,
    }
    first = {**line, "step": 1, "cpu_seconds": 50.0}
    return "".join(
        json.dumps(item) + "\n"
        for item in [first, *({**line, "step": i} for i in range(2, iterations + 1))]
    )


@pytest.fixture
def plan(tiny_teacher: Path, tmp_path: Path) -> Plan:
    """Two finished rows: dmd2 costs 2.5 times sgmd."""
    job = job_file(tiny_teacher, tmp_path)
    plan = make_plan(
        job,
        tmp_path / "out",
        methods=["sgmd", "dmd2"],
        seeds=2,
        overrides=["train.iterations=10"],
        every=2,
    )
    for seed in plan.seeds:
        save = measuring.save
        save(measured(1.0, seed), plan.measurement("teacher", seed, 0))
        save(measured(3.0, 10 + seed), plan.measurement("undistilled", seed, 0))
        for row, cost, gain in (("sgmd", 10.0, 0.1), ("dmd2", 25.0, 0.2)):
            run = plan.run(row, seed)
            run.mkdir(parents=True)
            (run / "metrics.jsonl").write_text(trace(10, cost, cost / 10))
            for step in plan.snapshots():
                now = measured(3.0 - gain * step + 0.1 * seed, 20 + seed)
                save(now, plan.measurement(row, seed, step, full=step == 10))
                if (row, step) == ("dmd2", 4):
                    save(now, plan.measurement(row, seed, step))
    return plan


def test_rows_have_means_and_spreads_over_seeds(plan: Plan) -> None:
    results = tables.build_results(plan, "forwards", {})
    rows = results["rows"]
    assert list(rows) == ["teacher", "undistilled", "sgmd", "dmd2"]
    sgmd = rows["sgmd"]["equal_iterations"]
    assert sgmd["optflow"]["values"] == pytest.approx([2.0, 2.1])
    assert sgmd["optflow"]["std"] == pytest.approx(0.1 / 2**0.5)
    assert sgmd["diversity"]["mean"] == pytest.approx(0.205) and sgmd["dyndeg"]["mean"] == 1
    assert rows["dmd2"]["fake_score_updates"] == 5 and rows["sgmd"]["nfe"] == 4
    # Distance of the means, 3 features in units of the teacher's spread of about 1.
    assert sgmd["frechet"]["mean"] == pytest.approx(3 * 1.05**2, rel=0.25)
    assert rows["undistilled"]["equal_iterations"]["frechet"]["mean"] == pytest.approx(12, rel=0.25)
    # The teacher is compared with its other seeds: its own distance is chance's, and not nothing.
    first, second = (np.array(measured(1.0, seed).features, np.float32) for seed in (0, 1))
    expected = gaussian_distance(first, second, second.astype(np.float64).std(0))
    own = rows["teacher"]["equal_iterations"]["frechet"]["values"]
    assert own[0] == pytest.approx(expected) and 0.1 < expected < 1
    assert not results["captions_checkable"] and "motion" not in sgmd


def test_costs_are_those_of_the_trace_without_its_warm_up(plan: Plan) -> None:
    cost = tables.read_cost(plan.run("dmd2", 0)).per_iteration()
    assert (cost["cpu_seconds"], cost["seconds"], cost["equivalents"]) == (2.5, 5, 25)
    assert (cost["forwards"], cost["backwards"], cost["weight_backwards"]) == (4, 1, 1)
    assert cost["by_role"]["forwards"] == {"student": 2, "teacher": 2}
    cumulative = tables.read_cost(plan.run("dmd2", 0)).cumulative("seconds")
    np.testing.assert_allclose(cumulative[:3], [50, 52.5, 55])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "is empty"),
        ("{}", "line 1 does not say what it cost"),
        ("[1]", "line 1 is not a JSON object"),
        ('{"forwards": 1}', "line 1 does not say what it cost"),
    ],
)
def test_a_log_that_does_not_say_the_cost_is_named(plan: Plan, line: str, reason: str) -> None:
    run = plan.run("sgmd", 0)
    (run / "metrics.jsonl").write_text(line)
    with pytest.raises(UserError, match=rf"metrics\.jsonl: {reason}"):
        tables.read_cost(run)
    endless = trace(1, 13.5, 1.0).replace("13.5", "1e999")
    (run / "metrics.jsonl").write_text(endless)
    with pytest.raises(UserError, match="does not say what it cost"):
        tables.read_cost(run)


def test_equal_compute_takes_the_last_snapshot_within_the_cheapest_rows_budget(plan: Plan) -> None:
    assert tables.budget(plan, "forwards") == ("sgmd", 100)
    results = tables.build_results(plan, "forwards", {})
    cut = results["rows"]["dmd2"]["equal_compute"]
    assert cut["step"] == 4  # 4 times 25; the fifth iteration would exceed 100
    assert cut["optflow"]["values"] == pytest.approx([2.2, 2.3])
    assert results["rows"]["sgmd"]["equal_compute"]["step"] == 10
    assert cut["share"] == 1 and results["rows"]["sgmd"]["equal_compute"]["share"] == 1
    assert tables.step_within(plan, "dmd2", "forwards", 49) == (0, 0)
    assert tables.step_within(plan, "dmd2", "forwards", 80) == (2, 0.625)
    assert results["rows"]["dmd2"]["cost"]["relative"]["mean"] == pytest.approx(2.5)


def test_a_row_without_a_snapshot_in_the_budget_says_so(plan: Plan) -> None:
    for seed in plan.seeds:
        (plan.run("dmd2", seed) / "metrics.jsonl").write_text(trace(10, 90.0, 9.0))
    results = tables.build_results(plan, "forwards", {})
    assert results["rows"]["dmd2"]["equal_compute"] == {"step": 0, "share": 0}
    _, rows = table(results, "equal_compute")
    assert rows[3][0] == "dmd2" and rows[3][3] == "0 (0%)" and set(rows[3][4:]) == {"-"}


def test_rows_and_seeds_that_are_missing_leave_the_others(plan: Plan) -> None:
    plan.measurement("dmd2", 1, 10).unlink()
    for seed in plan.seeds:
        plan.measurement("sgmd", seed, 10).unlink()
    results = tables.build_results(plan, "forwards", {"sgmd seed 0": "broke"})
    assert results["rows"]["dmd2"]["seeds"] == [0]
    assert results["rows"]["dmd2"]["equal_iterations"]["optflow"]["std"] is None
    assert results["rows"]["sgmd"]["seeds"] == [] and "curve" not in results["rows"]["sgmd"]
    page = markdown(results)
    assert "Failed: sgmd seed 0: broke" in page
    assert "Not all of the 2 seeds are done: sgmd 0, dmd2 1." in page


def test_captions_that_can_be_checked_add_their_columns(plan: Plan) -> None:
    from lightx2v_sgmd.apps.sprites.evaluate import held_out_captions
    from tests.apps.comparison.test_measuring import sprite_videos

    teacher, student = (
        measuring.measure_videos(sprite_videos(30, seed), held_out_captions(30), 8, nfe=4)
        for seed in (0, 1)
    )
    assert student.verdicts is not None
    wrong = [replace(v, all_attributes=False, speeds=(0.0,)) for v in student.verdicts[:15]]
    student = replace(student, verdicts=[*wrong, *student.verdicts[15:]])
    found = tables.Reference({0: teacher}).metrics(student, 0)
    assert found["all_attributes"] == 0.5 and found["colour"] == found["clean"] == 1
    assert found["motion"] == pytest.approx(0.5, abs=0.15)
    own = tables.Reference({0: teacher}).metrics(teacher, 0, is_teacher=True)
    assert own["frechet"] < 1e-6 and own["motion"] == 1


def test_motions_that_captions_leave_open_have_their_shares(plan: Plan) -> None:
    from lightx2v_sgmd.apps.sprites.evaluate import held_out_motion_captions
    from tests.apps.comparison.test_measuring import motion_videos

    captions = held_out_motion_captions(60)
    teacher = measuring.measure_videos(motion_videos(60, 0), captions, 8, nfe=4)
    assert teacher.motions is not None
    rested = [
        replace(v, manner="still") if v.motion_is_open else replace(v, right={"manner": False})
        for v in teacher.motions
    ]
    reference = tables.Reference({0: teacher})
    found = reference.metrics(replace(teacher, motions=rested), 0)
    assert found["open_still"] == 1 and found["rare"] == found["open_fast"] == found["manner"] == 0
    assert found["motion"] == 1 and found["frechet"] < 1e-6
    own = reference.metrics(teacher, 0, is_teacher=True)
    assert own["all_attributes"] == own["manner"] == own["direction"] == 1
    shares = [own[f"open_{m}"] for m in ("fast", "turn", "bounce", "late")]
    assert own["rare"] == pytest.approx(sum(shares)) and 0.1 < own["rare"] < 0.5
    results = tables.build_results(plan, "forwards", {})
    assert "| rare |" not in markdown(results)  # of another teacher
    for row in results["rows"].values():
        row["equal_iterations"] |= tables.over_seeds([own])
    assert "| rare | still |" in markdown({**results, "captions_checkable": True})


def test_tables_and_curves_say_what_the_results_say(plan: Plan) -> None:
    results = tables.build_results(plan, "forwards", {})
    page = markdown(results)
    _, costs = table(results, "cost")
    assert [row[0] for row in costs] == ["sgmd", "dmd2"] and costs[1][4:6] == [
        "2.500 ± 0.000",
        "2.50 ± 0.00",
    ]
    heads, rows = table(results, "equal_iterations")
    assert all(len(row) == len(heads) for row in rows)
    assert [row[:4] for row in rows] == [
        ["teacher", "4", "-", "-"],
        ["undistilled", "4", "-", "-"],
        ["sgmd", "4", "1", "10"],
        ["dmd2", "4", "5", "10"],
    ]
    assert "| sgmd | 4 | 1 | 10 |" in page and "within the 100 forward equivalents" in page
    assert (
        "Not all" not in page
        and "motion" not in heads
        and "cannot be checked in the frames" in page
    )
    optflow = next(column for column in QUALITY if column.key == "optflow")
    drawn = plot(results, optflow, "forwards")
    assert drawn is not None
    (axes,) = drawn.axes
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.get_lines()}
    assert list(lines) == ["sgmd", "dmd2", "_teacher", "_undistilled"]
    sgmd, dmd2 = lines["sgmd"], lines["dmd2"]
    assert len(sgmd) == 6 and (sgmd[0] == dmd2[0]).all()  # undistilled, then five snapshots
    assert sgmd[-1][0] == dmd2[2][0] == 100
    assert sgmd[0][1] > sgmd[-1][1]
    assert len(axes.collections) == 2, "a shade for each row"
    assert axes.get_xlabel() == "forward equivalents of one sample"


def test_a_logarithmic_plot_leaves_out_what_has_no_logarithm(plan: Plan) -> None:
    results = tables.build_results(plan, "forwards", {})
    optflow = next(column for column in QUALITY if column.key == "optflow")
    results["rows"]["teacher"]["curve"][0]["optflow"]["mean"] = 0.0
    drawn = plot(results, optflow, "seconds", log=True)
    assert drawn is not None
    (axes,) = drawn.axes
    assert axes.get_yscale() == "log" and axes.get_xlabel() == "CPU seconds"
    assert "_teacher" not in [line.get_label() for line in axes.get_lines()]
    assert axes.get_ylim()[0] > 0
