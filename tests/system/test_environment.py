from __future__ import annotations

import pytest

from lightx2v_sgmd.cli.main import run
from lightx2v_sgmd.system.environment import check_environment, check_joining
from lightx2v_sgmd.system.errors import UserError


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["", "abc", "-1", "1.5", "٣", "9" * 5_000, " 1"])
def test_launcher_variables_that_are_no_numbers(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{name}: .* is not a whole number; .*unset {name}$"):
        check_environment()


def test_it_is_said_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "x" * 1_000)
    assert run(["doctor"]) == 2
    assert len(capsys.readouterr().err) < 300


def test_a_rank_is_below_the_number_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(UserError, match="RANK: 2 in the environment is not below WORLD_SIZE, 2"):
        check_environment()
    monkeypatch.setenv("RANK", "1")
    check_environment()


def test_processes_that_do_not_know_where_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("MASTER_ADDR", ""), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="MASTER_ADDR: is missing from the environment"):
        check_joining()
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    check_joining()


@pytest.mark.parametrize("name", ["HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"])
def test_the_hubs_timeouts_are_named_if_they_are_no_numbers(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "abc")
    with pytest.raises(UserError, match=f"^{name}: 'abc' .* number of seconds; .*unset {name}$"):
        check_environment()
    for usual in ("", "30"):
        monkeypatch.setenv(name, usual)
        check_environment()
