"""The distillation methods by name, those of installed packages included."""

from __future__ import annotations

from importlib.metadata import entry_points

from lightx2v_sgmd.methods.adm import ADM
from lightx2v_sgmd.methods.adp import ADP, DMDX
from lightx2v_sgmd.methods.base import AdversarialMethod, Losses, Method, PretrainingMethod, Sample
from lightx2v_sgmd.methods.dmd2 import DMD2
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
    "AdversarialMethod",
    "Losses",
    "Method",
    "PretrainingMethod",
    "Sample",
    "SiD",
    "TSGFisher",
    "method_class",
    "method_names",
]

REGISTRY: dict[str, type] = {
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


def method_class(name: str) -> type:
    """The dataclass of a method: its fields are the options, its instances are a ``Method``.

    Raises:
        UserError: no method has that name.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            found: type = point.load()
            return found
    raise UserError(f"method.name: {name!r} is unknown; use one of {', '.join(method_names())}")
