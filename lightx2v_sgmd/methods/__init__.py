"""The distillation methods by name, those of installed packages included."""

from __future__ import annotations

from importlib.metadata import entry_points

from lightx2v_sgmd.methods.adm import ADM
from lightx2v_sgmd.methods.adp import ADP
from lightx2v_sgmd.methods.base import Losses, Method, Sample
from lightx2v_sgmd.methods.dmd2 import DMD2
from lightx2v_sgmd.methods.dmdx import DMDX
from lightx2v_sgmd.methods.sgmd import SGMD
from lightx2v_sgmd.methods.sid import SiD
from lightx2v_sgmd.methods.tsg_fisher import TSGFisher
from lightx2v_sgmd.methods.tsg_sim import TSGSIM
from lightx2v_sgmd.system.errors import UserError

__all__ = [
    "ADM",
    "ADP",
    "DMD2",
    "DMDX",
    "SGMD",
    "TSGSIM",
    "Losses",
    "Method",
    "Sample",
    "SiD",
    "TSGFisher",
    "method_class",
    "method_names",
]

REGISTRY: dict[str, type[Method]] = {
    "adm": ADM,
    "adp": ADP,
    "dmd2": DMD2,
    "dmdx": DMDX,
    "sgmd": SGMD,
    "sid": SiD,
    "tsg_fisher": TSGFisher,
    "tsg_sim": TSGSIM,
}
ENTRY_POINT_GROUP = "lightx2v_sgmd.methods"


def method_names() -> list[str]:
    """Every method that a job can name: the project's own and those of installed packages."""
    return sorted({*REGISTRY, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def method_class(name: str) -> type[Method]:
    """The dataclass of a method, whose fields are the options.

    Raises:
        UserError: no method has that name, or a package's class is no ``Method``.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            loaded = point.load()
            if isinstance(loaded, type) and issubclass(loaded, Method):
                return loaded
            raise UserError(
                f"method.name: {name!r} is {point.value}, which does not inherit from "
                "lightx2v_sgmd.methods.Method; see docs/methods.md"
            )
    raise UserError(f"method.name: {name!r} is unknown; use one of {', '.join(method_names())}")
