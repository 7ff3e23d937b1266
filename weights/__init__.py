"""The application that turns trained students into weights that other programs load."""

from weights.exporting import export
from weights.formats import FORMATS
from weights.layout import DTYPES
from weights.verify import ExportError, verify

__all__ = ["DTYPES", "FORMATS", "ExportError", "export", "verify"]
