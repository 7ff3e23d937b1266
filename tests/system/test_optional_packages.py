from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lightx2v_sgmd.cli import main
from lightx2v_sgmd.system import optional_packages
from lightx2v_sgmd.system.errors import UserError
from tests.standins import PACKAGES, run_with, write_package
from tests.training import job_file

IMPORTED_ALONG = ("bitsandbytes", "flash_attn", "peft", "torchao", "torchvision", "xformers")

# Each package in a process of its own; torch is imported once, before they part.
EACH_ALONE = """
import json, os, sys
import huggingface_hub, torch, torch.distributed
teacher, folder, *packages = sys.argv[1:]
for package in packages:
    child = os.fork()
    if not child:
        try:
            sys.path.insert(0, os.path.join(folder, package))
            if package.startswith("late"):
                import diffusers, transformers
            import torch
            from lightx2v_sgmd.families.wan.opening import open_wan
            from lightx2v_sgmd.system.optional_packages import prepare_libraries
            model = open_wan(teacher)
            model.load_transformer(), model.load_vae()
            model.load_text_encoder(torch.float32).encode(["a"])
            print(package, json.dumps(prepare_libraries()), flush=True)
        finally:
            sys.stdout.flush()
            os._exit(bool(sys.exc_info()[0]))
    if os.waitpid(child, 0)[1]:
        print(package, '"failed"', flush=True)
"""

EVERYTHING = """
import json, sys
from pathlib import Path
import lightx2v_sgmd
from lightx2v_sgmd import UserError, load_job
from lightx2v_sgmd.cli.doctor import checks as doctor
from infer import Options
job, out = sys.argv[1:]
run = lightx2v_sgmd.distill(load_job(job, ["train.iterations=1"]))
weights = lightx2v_sgmd.export(run, "diffusers", out)
made = lightx2v_sgmd.load_student(weights).generate("a red circle", 0)
refused = []
for attempt in (
    lambda: lightx2v_sgmd.generate(weights, "a red circle", Path(out) / "video.mp4"),
    lambda: lightx2v_sgmd.distill(load_job(job, ["parallel.strategy=zero3", "output.dir=zero3"])),
    lambda: lightx2v_sgmd.distill(load_job(job, ["student.train=lora", "output.dir=lora"])),
    lambda: lightx2v_sgmd.load_student(weights, Options(quantize="int8")),
    lambda: __import__("lightx2v_sgmd.apps.demo"),
):
    try:
        attempt()
    except UserError as error:
        refused.append(str(error))
print(json.dumps([list(made.frames.shape), refused, doctor.run().to_dict()]))
"""


@pytest.mark.slow
def test_each_broken_package_alone_stops_no_model(tiny_teacher: Path, tmp_path: Path) -> None:
    for package in IMPORTED_ALONG:
        write_package(tmp_path / package, package)
    late = {"late": "bitsandbytes"}  # diffusers was imported before us
    write_package(tmp_path / "late", late["late"])
    done = run_with([], EACH_ALONE, str(tiny_teacher), str(tmp_path), *IMPORTED_ALONG, "late")
    lines = (line.partition(" ") for line in done.stdout.splitlines())
    found = {name: json.loads(broken) for name, _, broken in lines}
    here = (
        optional_packages.prepare_libraries()
    )  # what this environment itself has that does not import
    expected = {
        name: {**here, package: f"undefined symbol: {package}_c10"}
        for name, package in {**{name: name for name in IMPORTED_ALONG}, **late}.items()
    }
    assert found == expected, done.stderr
    assert done.stderr == ""


@pytest.mark.slow
def test_commands_go_on_without_every_broken_package(tiny_teacher: Path, tmp_path: Path) -> None:
    for package in PACKAGES:
        write_package(tmp_path / "site" / package, package)
    folders = [tmp_path / "site" / package for package in PACKAGES]
    job = job_file(tiny_teacher, tmp_path)
    done = run_with(folders, EVERYTHING, str(job), str(tmp_path / "student"))
    assert done.returncode == 0, done.stderr
    shape, refused, report = json.loads(done.stdout.splitlines()[-1])
    assert shape == [5, 32, 32, 3]
    assert not (tmp_path / "run" / "samples").exists()
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 1
    for note in ("no sample videos: the package imageio-ffmpeg is", "TensorBoard does not import"):
        assert note in done.stderr
    problem = "does not import: undefined symbol"
    reasons = ["imageio-ffmpeg is installed", "zero3 needs DeepSpeed", "lora needs PEFT"]
    reasons += ["int8 needs the package torchao", "opencv-python-headless is installed"]
    for message, reason in zip(refused, reasons, strict=True):
        assert reason in message and problem in message
        assert "pip install" in message or "run `lightx2v-sgmd doctor`" in message
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["diffusers"]["state"] == checks["transformers"]["state"] == "ok"
    for package, (name, version) in PACKAGES.items():
        check = checks["video" if package == "imageio_ffmpeg" else name]
        assert check["state"] == ("broken" if package == "imageio_ffmpeg" else "missing")
        assert f"{package}_c10" in check["detail"] and "-m pip " in check["remedy"]
        assert version in check["detail"] or package == "imageio_ffmpeg"
    assert checks["torchao"]["remedy"].endswith("-m pip install 'torchao<0.18.0'")


@pytest.mark.slow
def test_what_torchao_lacks_is_not_said_at_every_command(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    """diffusers logs that it finds no tensors in torchao 0.18; nobody can do anything about it."""
    folder = write_package(tmp_path, "torchao", "")
    parts = {
        "quantization": "FqnToConfig = quantize_ = None\n",
        "prototype/safetensors/safetensors_support": (
            "flatten_tensor_state_dict = unflatten_tensor_state_dict = None\n"
        ),
        "prototype/safetensors/safetensors_utils": "is_metadata_torchao = None\n",
    }
    for part, body in parts.items():
        file = folder / "torchao" / f"{part}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(body, encoding="utf-8")
    load = "import sys; from lightx2v_sgmd.families.wan.opening import open_wan; "
    load += "open_wan(sys.argv[1]).load_transformer(); print('torchao' in sys.modules)"
    done = run_with([folder], load, str(tiny_teacher))
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_package_that_is_missing_or_works_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert optional_packages.why_unusable("yaml") is None
    assert optional_packages.why_unusable("no_such_package") == "is not installed"
    assert optional_packages.why_unusable("yaml.no_such_module") == "is not installed"
    (tmp_path / "halfway.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    problem = "is installed but does not import: No module named 'no_such_package'"
    assert optional_packages.why_unusable("halfway") == problem
    with pytest.raises(UserError, match="^the package halfway is installed but .*pip install"):
        optional_packages.required("halfway")


def test_a_submodule_may_be_missing_but_not_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "parted"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "broken.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert optional_packages._import_problem(("parted", "parted.deep.missing")) is None
    assert optional_packages._import_problem(("parted", "parted.broken")) is not None
    assert optional_packages._import_problem(("parted.missing",)) is not None


@pytest.mark.slow
def test_a_broken_package_that_nobody_lists_is_named(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    (site / "unheard_of").mkdir(parents=True)
    (site / "unheard_of" / "__init__.py").write_text("raise OSError('libodd.so: no such file')\n")
    (site / "diffusers").mkdir()
    (site / "diffusers" / "__init__.py").write_text("import unheard_of\n")
    script = (
        "from lightx2v_sgmd.system.optional_packages import prepare_libraries; prepare_libraries()"
    )
    done = run_with([site], script)
    assert done.stderr.splitlines()[-1] == (
        "lightx2v_sgmd.system.errors.UserError: "
        "diffusers cannot be imported, because unheard_of fails: "
        "libodd.so: no such file; install the release of unheard_of that fits the other packages, "
        "or remove it (pip uninstall unheard_of)"
    )


@pytest.mark.slow
def test_libraries_load_on_the_cpu_whatever_their_caller_builds_on(tmp_path: Path) -> None:
    models = tmp_path / "diffusers" / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").write_text("import torch\nprint(torch.ones(1).device)\n")
    for module in ("__init__", "modeling_utils"):
        (models / f"{module}.py").touch()
    script = "import torch; from lightx2v_sgmd.system.optional_packages import prepare_libraries\n"
    script += "with torch.device('meta'): prepare_libraries(); print(torch.ones(1).device)"
    done = run_with([tmp_path], script)
    assert done.stdout.splitlines() == ["cpu", "meta"], done.stderr


def test_generate_without_an_encoder_is_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    arguments = ["generate", "--weights", str(tmp_path / "none"), "--prompt", "a"]
    assert main.run([*arguments, "--out", str(tmp_path / "video.mp4")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the package imageio-ffmpeg is not installed; ")


def test_an_ffmpeg_that_does_not_run_is_named_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optional_packages.why_unusable("imageio_ffmpeg") is None
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/none/ffmpeg")
    says = "finds no ffmpeg: IMAGEIO_FFMPEG_EXE is /none/ffmpeg, which does not run (unset it)"
    assert optional_packages.why_unusable("imageio_ffmpeg") == says
    out = tmp_path / "x.mp4"
    assert main.run(["generate", "--weights", "sprites", "--prompt", "a", "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"error: the package imageio-ffmpeg {says}; ")
    assert main.run(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert f"imageio-ffmpeg {says}" in capsys.readouterr().err
    folder = str(tmp_path / "serve")
    assert main.run(["serve", "--weights", "sprites", "--port", "0", "--data", folder]) == 2
    assert capsys.readouterr().err.startswith(f"error: the package imageio-ffmpeg {says}; ")
    assert list(tmp_path.iterdir()) == []
