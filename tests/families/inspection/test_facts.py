"""An inspection's facts as lines and as JSON."""

from pathlib import Path

from lightx2v_sgmd.families.inspection.facts import (
    Inspection,
    add_schedule_fact,
    size_text,
    some_of,
    steps_text,
)
from lightx2v_sgmd.files.tensors.safetensors_files import Header
from lightx2v_sgmd.schedule import Schedule


def test_an_inspection_is_told_in_lines_and_as_json() -> None:
    found = Inspection(Path("x"), "LoRA", {"made by": "us"}, ["a base"])
    assert found.lines() == ["x: LoRA", "  made by: us", "  missing: a base"]
    assert found.to_dict() == {"path": "x", "kind": "LoRA", "made_by": "us", "missing": ["a base"]}


def test_weights_without_a_schedule_say_so() -> None:
    for sgmd, remedy in ((True, "--assume-schedule sgmd"), (False, "lightx2v-sgmd export")):
        found = Inspection(Path("x"), "network")
        add_schedule_fact(found, Header({}, {}), sgmd)
        assert found.facts == {} and remedy in found.missing[0]


def test_wording() -> None:
    steps = Schedule((1000, 750, 500, 250), 8.0, "euler")
    assert steps_text(steps) == "1000/960/889/727, shift 8, euler"
    assert size_text(480, 832, 81) == "480x832, 81 frames" and size_text(8, 8, 1) == "8x8"
    assert some_of(list("abcdef")) == "a, b, c, d and 2 more" and some_of(["a"]) == "a"
