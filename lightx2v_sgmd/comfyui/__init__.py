"""A ComfyUI custom node: load a student with its steps, sample in them, save with both.

ComfyUI imports this folder from its ``custom_nodes``; the package must be installed beside it.
"""

from __future__ import annotations

from lightx2v_sgmd.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
