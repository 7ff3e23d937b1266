"""``${...}`` in a YAML is replaced as OmegaConf does, within limits."""

from pathlib import Path

import pytest

from lightx2v_sgmd.job.from_lightx2v.interpolation import holds_environment, resolve
from lightx2v_sgmd.system.errors import UserError

FILE = Path("theirs.yaml")


def test_keys_and_variables_are_put_in_with_their_types() -> None:
    tree = {
        "a": {"n": 3, "whole": "${a.n}", "text": "x${a.n}y", "copy": "${b}"},
        "b": [1, "${oc.env:HOME_OF_IT}", "${oc.env:NOT_THERE, 7}"],
    }
    found = resolve(tree, FILE, {"HOME_OF_IT": "/home"})
    assert found["a"] == {"n": 3, "whole": 3, "text": "x3y", "copy": [1, "/home", 7]}


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"a": "${b}", "b": "${a}"}, "goes in a circle, or too deep"),
        ({"a": "${b.c}", "b": 1}, r"\$\{b.c\}: there is no such key"),
        ({"a": "${oc.env:NOT_THERE}"}, "the environment has no NOT_THERE; set it"),
        ({"a": ["${b}"] * 1001, "b": 1}, "more than 1000 values"),
    ],
)
def test_what_cannot_be_put_in_is_one_line(tree: dict[str, object], problem: str) -> None:
    with pytest.raises(UserError, match=rf"^theirs.yaml: .*{problem}"):
        resolve(tree, FILE, {})


def test_a_value_from_the_environment_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s")
    tree = {"model": {"path": "${other}", "size": 3}, "other": "x/${oc.env:SECRET}"}
    assert holds_environment(tree, FILE, "model", "path")
    assert not holds_environment(tree, FILE, "model", "size")
