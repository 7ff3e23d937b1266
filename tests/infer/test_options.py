"""The options of a generation: one list, for the command, Python and the reference page."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest
import torch

from infer.engine_plan import torch_dtype
from infer.options import GenerateOptions
from lightx2v_sgmd.system.errors import UserError


def test_importing_the_options_imports_no_pytorch() -> None:
    code = "import sys, infer.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0


def test_every_option_says_what_it_means() -> None:
    for item in fields(GenerateOptions):
        meaning = item.metadata["meaning"]
        assert meaning[0].isupper() and meaning.endswith((".", "...")), item.name
        assert not meaning.startswith(("Of ", "Whether ", "What ", "Its ")), item.name


def test_a_precision_is_a_name_or_pytorchs_type() -> None:
    assert torch_dtype("bf16") is torch_dtype(torch.bfloat16) is torch.bfloat16
    with pytest.raises(UserError, match="'int4' is unknown; use bf16, fp16, fp32"):
        torch_dtype("int4")
