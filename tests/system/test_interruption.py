from __future__ import annotations

import subprocess
import sys

import pytest

from lightx2v_sgmd.cli.main import run
from lightx2v_sgmd.system.resources import config_path
from tests.cli.application import install

SPRITES = str(config_path("sprites_sgmd.yaml"))


def test_an_interruption_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "distill", "distill", KeyboardInterrupt())
    assert run(["distill", SPRITES]) == 130


INTERRUPTED_IN = """
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            {interrupt}
sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = ["job", "show", "{job}"]
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
from lightx2v_sgmd.__main__ import main
main()
"""


SWALLOWED = """
            import signal
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                raise ImportError("half a module")
"""


@pytest.mark.parametrize(
    ("module", "interrupt"),
    [
        ("typer", 'exec("raise KeyboardInterrupt")'),
        ("lightx2v_sgmd.job.schema", 'exec("raise KeyboardInterrupt")'),
        ("lightx2v_sgmd.job.schema", SWALLOWED),
    ],
    ids=["typer", "later", "swallowed"],
)
def test_an_interruption_is_one_line_while_modules_are_imported(
    module: str, interrupt: str
) -> None:
    code = INTERRUPTED_IN.format(module=module, job=SPRITES, interrupt=interrupt)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted; run the same command again\n"
