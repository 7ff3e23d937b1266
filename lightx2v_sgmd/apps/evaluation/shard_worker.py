"""One of the processes that make an evaluation's videos: ``python -m ... CALL.json K/N``.

Interrupted, it leaves the videos that it finished; started again, it makes the others.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightx2v_sgmd.apps.evaluation import evaluate_shard
from lightx2v_sgmd.apps.evaluation.shards import CALLS, ERROR, Shard
from lightx2v_sgmd.apps.vbench import VBenchOptions, evaluate_vbench
from lightx2v_sgmd.system.errors import RunError, UserError, escaped
from lightx2v_sgmd.system.processes import follow_parent, handling, leave


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    with handling(dict.fromkeys((signal.SIGINT, signal.SIGTERM), interrupt)):
        yield


def main(arguments: Sequence[str]) -> int:
    """One of the processes; the last line of its log is its error."""
    follow_parent()
    call, options = CALLS.validate_json(Path(arguments[0]).read_bytes())
    shard = Shard.parse(arguments[1])
    try:
        with _interruptible():
            if call.suite is not None:
                texts = None if call.augmented is None else Path(call.augmented)
                vbench = VBenchOptions(Path(call.suite), texts, shard)
                evaluate_vbench(call.weights, call.out, vbench, options, quiet=True)
            else:
                assert call.prompts is not None, "only VBench has prompts of its own"
                evaluate_shard(
                    call.weights,
                    call.prompts,
                    call.out,
                    shard,
                    against=call.against,
                    options=options,
                    quiet=True,
                )
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        print(f"{ERROR}{escaped('; '.join(error.lines))}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"{ERROR}{escaped(str(error))}", file=sys.stderr)
        return 1
    except Exception as error:
        traceback.print_exc()
        print(f"{ERROR}{type(error).__name__}: {escaped(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
