"""The generated pages of docs/reference/ are those of the code."""

from __future__ import annotations

from tools.reference import generate, job


def test_the_page_of_the_job_is_current() -> None:
    assert job.PAGE.read_text(encoding="utf-8") == job.page(), "run python -m tools.reference.job"


def test_every_key_of_a_job_is_explained() -> None:
    rows = [line.split(" | ") for line in job.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row[0] for row in rows if row[-1].strip(" |") == ""] == []


def test_the_page_of_generate_is_current() -> None:
    current = generate.PAGE.read_text(encoding="utf-8")
    assert current == generate.page(), "run python -m tools.reference.generate"
