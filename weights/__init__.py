"""The application that turns checkpoints into weights that other programs load."""

from weights.diffusers_format import DTYPES
from weights.exporting import FORMATS, export
from weights.verify import ExportError

__all__ = ["DTYPES", "FORMATS", "ExportError", "export"]
