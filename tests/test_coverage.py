"""``make coverage`` counts what started processes run: most commands are tested as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from coverage import CoverageData

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import os, subprocess, sys

python = [sys.executable, "-c"]
subprocess.run([*python, "import lightx2v_sgmd.system.errors"], check=True)
subprocess.run([*python, "import os, lightx2v_sgmd.system.lazy; os._exit(0)"], check=True)
last = [*python, "import lightx2v_sgmd.system.environment"]
code = f"import os; os.execve({sys.executable!r}, {last}, dict(os.environ))"
subprocess.run([*python, code], check=True)
child = os.fork()
if not child:
    import lightx2v_sgmd.system.quiet
    os._exit(0)
os.waitpid(child, 0)
"""


def test_what_started_processes_run_is_counted(tmp_path: Path) -> None:
    script, data_file = tmp_path / "script.py", tmp_path / "data"
    script.write_text(SCRIPT)
    # A session that is itself measured tells its processes where to write.
    outer = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    environment["PYTHONPATH"] = str(ROOT)
    options = [f"--rcfile={ROOT / 'pyproject.toml'}", f"--data-file={data_file}"]
    for command in (["run", *options, str(script)], ["combine", *options, str(tmp_path)]):
        done = subprocess.run(
            [sys.executable, "-m", "coverage", *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    data = CoverageData(str(data_file))
    data.read()
    counted = {Path(name).stem for name in data.measured_files() if data.lines(name)}
    assert {"errors", "lazy", "environment", "quiet"} <= counted
