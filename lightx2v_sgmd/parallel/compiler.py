"""Whether this machine can compile what DeepSpeed needs on a CPU."""

from __future__ import annotations

import importlib.util
import os
import shutil

from lightx2v_sgmd.errors import UserError


def check_compiler() -> None:
    """DeepSpeed compiles a shared-memory all-reduce for CPUs when it first starts.

    Raises:
        UserError: nothing here can compile it.
    """
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"parallel.strategy: zero3 on a CPU needs a C++ compiler, and there is no {compiler}; "
            "install g++ (Debian: apt install g++) or use parallel.strategy=local"
        )
    if shutil.which("ninja") is None and importlib.util.find_spec("ninja") is None:
        raise UserError(
            "parallel.strategy: zero3 on a CPU needs ninja; install it (pip install ninja) or use "
            "parallel.strategy=local"
        )
