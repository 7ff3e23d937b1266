"""The report of ``doctor``."""

from __future__ import annotations

from lightx2v_sgmd.cli.doctor.report import Check, DoctorReport

CHECKS = (
    Check("torch", "ok", "2.13.0"),
    Check("deepspeed ops", "missing", "no C++ compiler", "sudo apt-get install build-essential"),
)


def test_only_what_is_broken_stops_the_main_job() -> None:
    report = DoctorReport(CHECKS, "sdpa")
    assert report.ok and report.text().endswith("generate would choose attention sdpa; ready")
    assert "add it: sudo apt-get install build-essential" in report.text()
    broken = DoctorReport((*CHECKS, Check("video", "broken", "no encoder")), "sdpa")
    assert not broken.ok and "not ready: see what is broken above" in broken.text()
    assert broken.to_dict()["checks"][2] == {
        **{"name": "video", "state": "broken"},
        **{"detail": "no encoder", "remedy": ""},
    }
