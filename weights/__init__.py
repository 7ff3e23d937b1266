"""The application that turns trained students into weights that other programs load."""

from lightx2v_sgmd.files.tensors.dtypes import OPTIONS as DTYPES
from weights.exporting import export
from weights.formats.registry import FORMATS
from weights.hub import push
from weights.verify import ExportError, verify

__all__ = ["DTYPES", "FORMATS", "ExportError", "export", "push", "verify"]
