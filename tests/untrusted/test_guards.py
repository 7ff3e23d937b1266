"""Every call that reads a model is guarded: this walks the source and finds those that are not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("lightx2v_sgmd", "distill", "infer", "weights", "tools")

GUARDS: dict[str, tuple[str, object]] = {
    "from_pretrained": ("trust_remote_code", False),
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
"""Calls that are allowed with this argument."""

DANGEROUS = {
    "from_config",
    "for_model",
    "load_file",
    "safe_open",
    "snapshot_download",
    "hf_hub_download",
    "load_state_dict_from_url",
    "get_class_from_dynamic_module",
    "json.load",
    "json.loads",
    "yaml.load",
    "yaml.safe_load",
    "yaml.full_load",
    "yaml.unsafe_load",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "torch.hub.load",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "joblib.load",
    "eval",
    "exec",
    "compile",
    "__import__",
    "input",
    "os.system",
    "os.popen",
    "import_module",
    "spec_from_file_location",
    "run_path",
    "run_module",
}
"""Calls that are allowed only where ``ALLOWED`` gives the reason."""

ALLOWED: dict[tuple[str, str], str] = {
    ("lightx2v_sgmd/comfyui/nodes.py", "import_module"): "ComfyUI's own modules, by fixed names",
    ("lightx2v_sgmd/lightx2v.py", "import_module"): "LightX2V's own registry, by a fixed name",
    ("lightx2v_sgmd/untrusted/building.py", "for_model"): "of a configuration that was checked",
    ("lightx2v_sgmd/untrusted/building.py", "from_config"): "of a configuration that was checked",
    ("lightx2v_sgmd/untrusted/cogvideox.py", "from_config"): "of a configuration that was checked",
    ("lightx2v_sgmd/untrusted/sd3.py", "from_config"): "of a configuration that was checked",
    ("lightx2v_sgmd/untrusted/sdxl.py", "from_config"): "of a configuration that was checked",
    ("weights/formats/diffusers.py", "from_pretrained"): "a scheduler that was just written",
    (
        "lightx2v_sgmd/families/sources/parts.py",
        "snapshot_download",
    ): "fetches named kinds of files",
    ("lightx2v_sgmd/families/sources/parts.py", "hf_hub_download"): "fetches config.json",
    ("lightx2v_sgmd/families/wan/sources.py", "hf_hub_download"): "fetches config.json",
    ("lightx2v_sgmd/files/tensors/safetensors_files.py", "safe_open"): "after read_header",
    ("lightx2v_sgmd/system/lazy.py", "import_module"): "names of a table of the package itself",
    (
        "lightx2v_sgmd/apps/evaluation/scores/fvd.py",
        "torch.jit.load",
    ): "the file that --i3d names",
    ("lightx2v_sgmd/cli/doctor/checks.py", "import_module"): "names of its own table",
    ("distill/running/trackers.py", "import_module"): "packages that its own table names",
    ("lightx2v_sgmd/networks/attention.py", "import_module"): "a wheel that its table names",
    ("lightx2v_sgmd/networks/flash_attention4.py", "import_module"): "one installed package",
    (
        "lightx2v_sgmd/system/optional_packages.py",
        "import_module",
    ): "installed packages that our code names",
}

OWN_TEXT = {
    "lightx2v_sgmd/families/sources/hub_configs.py",
    "lightx2v_sgmd/parallel/hang_detector.py",
    "infer/memory_mode.py",
}
"""Modules that parse JSON which is part of the package or was made by this very program run."""


def called(node: ast.Call) -> str:
    """The name of what is called, with its module where one stands before it."""
    function = node.func
    if isinstance(function, ast.Attribute):
        parts = [function.attr]
        inner = function.value
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        parts.append(inner.id if isinstance(inner, ast.Name) else "?")
        return ".".join(reversed(parts))
    return function.id if isinstance(function, ast.Name) else ""


def unguarded(source: str) -> Iterator[tuple[int, str]]:
    """The line and the name of each call without its guard."""
    tree = ast.parse(source)
    called_here = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in called_here:
            if node.attr in ("from_pretrained", "from_config"):  # handed on, to be called there
                yield node.lineno, node.attr
        if not isinstance(node, ast.Call):
            continue
        full = called(node)
        last = full.rpartition(".")[2]
        if full.startswith(("re.", "self.", "zipfile.")):
            continue
        name = next((n for n in (full, last) if n in GUARDS or n in DANGEROUS), None)
        if name is None or (name in ("compile", "eval") and "." in full):
            continue
        if name in GUARDS:
            key, wanted = GUARDS[name]
            given = {word.arg: word.value for word in node.keywords}
            value = given.get(key)
            if isinstance(value, ast.Constant) and value.value is wanted:
                continue
        yield node.lineno, name


@cache
def found() -> tuple[tuple[str, int, str], ...]:
    rows: list[tuple[str, int, str]] = []
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            rows += [(name, *call) for call in unguarded(file.read_text(encoding="utf-8"))]
    return tuple(rows)


def is_tool(file: str) -> bool:
    """True if a file is a tool for developers, which reads what its own author names."""
    return file.startswith("tools/")


def test_every_call_is_guarded() -> None:
    problems = []
    for file, line, name in found():
        own = file in OWN_TEXT and name.startswith("json.")
        trusted = is_tool(file) and name not in ("torch.load", "np.load", "pickle.load", "eval")
        if (file, name) not in ALLOWED and not own and not trusted:
            problems.append(f"{file}:{line}: {name}")
    remedy = "read strangers' files with lightx2v_sgmd.untrusted, or give the reason in this file"
    assert problems == [], remedy


def test_nothing_is_allowed_that_is_not_there() -> None:
    there = {(file, name) for file, _, name in found()}
    assert {call for call in ALLOWED if call not in there} == set()
    parsing = {file for file, _, name in found() if name.startswith("json.")}
    assert OWN_TEXT - parsing == set()


def test_one_module_imports_yaml() -> None:
    importers = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            source = file.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(source if "yaml" in source else "")):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                if any(name.split(".")[0] == "yaml" for name in names):
                    importers.add(file.relative_to(ROOT).as_posix())
    importers -= {"tools/checks/check_lightx2v_train.py"}  # a tool, with safe_load
    assert importers == {"lightx2v_sgmd/files/yaml_loader.py"}, "read YAML with yaml_loader"


def test_no_auto_class_reads_a_folder() -> None:
    calls = []
    for package in PACKAGES[:4]:
        for file in sorted((ROOT / package).rglob("*.py")):
            source = file.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(source if "Auto" in source else "")):
                if isinstance(node, ast.Call):
                    name = called(node)
                    if name.startswith("Auto") and name.endswith(("pretrained", "from_config")):
                        calls.append(f"{file}: {name}")
    assert calls == []


@pytest.mark.parametrize(
    "line",
    [
        "AutoModel.from_pretrained(folder)",
        "transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)",
        "T5Tokenizer.from_pretrained(folder, trust_remote_code=trust)",
        "UMT5EncoderModel.from_config(config)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "load_file(path)",
        "safetensors.torch.load_file(path)",
        "torch.hub.load_state_dict_from_url(url)",
        "pickle.loads(data)",
        "pickle.Unpickler(file)",
        "yaml.load(text, Loader=Loader)",
        "yaml.safe_load(text)",
        "json.loads(text)",
        "json.load(file)",
        "eval(text)",
        "exec(text)",
        "importlib.import_module(name)",
        "os.system(text)",
        "build(Model.from_pretrained)",
        "input('trust it? ')",
    ],
)
def test_an_unguarded_call_is_found(line: str) -> None:
    assert len(list(unguarded(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "T5Tokenizer.from_pretrained(folder, trust_remote_code=False)",
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "re.compile(text)",
        "torch.compile(network)",
        "network.eval()",
        "json.dumps(x)",
    ],
)
def test_a_guarded_call_is_not(line: str) -> None:
    assert list(unguarded(line)) == []
