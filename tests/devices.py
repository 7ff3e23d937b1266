"""Which device tests run on: the CPU, and the GPU for those that are marked ``gpu``.

A session sees the GPU only if it was asked for those tests alone (``pytest -m gpu``, which is
``make test-gpu``). In any other session there is none, so that on a GPU host all other tests run
what they run elsewhere. ``tests/conftest.py`` imports this before anything asks for a GPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch

GPU = "gpu"
CPU = torch.device("cpu")


def asks_for_gpu_tests(words: Sequence[str]) -> bool:
    """True if a command line of pytest selects the tests marked ``gpu`` and no others."""
    expression = ""
    for index, word in enumerate(words):
        if word == "-m" and index + 1 < len(words):
            expression = words[index + 1]
        elif word.startswith("-m") and len(word) > 2:
            expression = word[2:].removeprefix("=")
    parts = expression.split()
    return parts[:1] == [GPU] and "or" not in parts


def hide_gpus(words: Sequence[str]) -> None:
    """Hides all GPUs from this process and those that it starts, unless its tests are for them."""
    if not asks_for_gpu_tests(words):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


hide_gpus(sys.argv[1:])
