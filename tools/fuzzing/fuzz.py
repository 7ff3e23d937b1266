"""Fuzzes the parsers of strangers' files: ``python -m tools.fuzzing.fuzz TARGET... --seconds 60``.

Needs atheris (``pip install 'lightx2v-sgmd[fuzz]'``), which follows what the code does with an
input and changes it to reach more. The corpus grows in ``.fuzz/TARGET``, which git ignores. An
input that is answered with anything but a ``UserError``, or not within five seconds, ends the run
and is left as ``.fuzz/crash-*``: mend the parser, and add the input to ``targets.seeds``. Of
several targets, or of ``all``, each runs in a process of its own that logs to ``.fuzz/TARGET.log``.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

CORPUS = Path(".fuzz")
TIMEOUT_S = 5
MEMORY_MIB = 2_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs targets; returns 2 if atheris or a target is missing, 1 if one of several failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", nargs="+", help="names of targets, 'all', or 'list' to see them")
    parser.add_argument("--seconds", type=int, default=60, help="how long; default 60")
    parser.add_argument("--max-length", type=int, default=8_000, help="bytes of an input")
    options = parser.parse_args(arguments)
    listing = options.target == ["list"]
    if not listing and find_spec("atheris") is None:
        print("error: atheris is not installed; pip install atheris (Linux, CPython)")
        return 2
    targets = _targets(instrumented=not listing)
    names = list(targets.TARGETS) if options.target == ["all"] else options.target
    if listing or not set(names) <= set(targets.TARGETS):
        print("\n".join(targets.TARGETS))
        return 0 if listing else 2
    if len(names) == 1:
        _fuzz(targets, names[0], options.seconds, options.max_length)
    codes = [_fuzz_apart(targets, name, options.seconds, options.max_length) for name in names]
    return int(any(codes))


def _fuzz_apart(targets, name: str, seconds: int, length: int) -> int:  # type: ignore[no-untyped-def]
    """Fuzzes a target in a copy of this process, since the fuzzer ends the process it is in."""
    CORPUS.mkdir(exist_ok=True)
    log = CORPUS / f"{name}.log"
    sys.stdout.flush()
    child = os.fork()
    if not child:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            _fuzz(targets, name, seconds, length)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = re.findall(r"number_of_executed_units: (\d+)", log.read_text(errors="replace"))
    count = f"{int(found[-1]):,} inputs" if found else "no inputs counted"
    print(f"{name}: {count}, exit code {code}", flush=True)
    return code


def _targets(instrumented: bool):  # type: ignore[no-untyped-def]
    if not instrumented:
        from tools.fuzzing import targets

        return targets
    import atheris

    # Not instrumented, since they are large; and imported now, since an input has five seconds.
    from diffusers import AutoencoderKLWan, WanTransformer3DModel  # noqa: F401
    from transformers import T5Tokenizer, UMT5EncoderModel  # noqa: F401

    with atheris.instrument_imports(include=["lightx2v_sgmd", "infer", "yaml", "tools"]):
        from tools.fuzzing import targets
    return targets


def _fuzz(targets, name: str, seconds: int, length: int) -> None:  # type: ignore[no-untyped-def]
    import atheris

    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.seeds()[name]):
        (corpus / f"seed-{number}").write_bytes(seed)

    def once(data: bytes) -> None:
        targets.run_target(name, data)

    settings = [
        f"-max_total_time={seconds}",
        f"-timeout={TIMEOUT_S}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-max_len={length}",
        f"-artifact_prefix={CORPUS}/",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *settings, str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
