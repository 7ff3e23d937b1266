"""A stand-in for an application's function, which tests of the command line call."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest


class Application:
    """Stands in for an application's function: notes how it is called, then answers or raises."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def install(monkeypatch: pytest.MonkeyPatch, module: str, name: str, answer: Any) -> Application:
    application = Application(answer)
    fake = ModuleType(module)
    setattr(fake, name, application)
    monkeypatch.setitem(sys.modules, module, fake)
    return application
