"""Each folder's README says what is in it, what others import from it, and where a new thing goes.

The sentences from "Others import" to the paragraph's end that speak of imports name the files and
folders that modules outside the folder import, no more and no fewer, or say "every module". Tools
and tests may import anything of the package, so tools count here only among themselves.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import pytest

from tests.test_layers import APPLICATIONS, LIBRARY, ROOT, Import, imports, within

PACKAGES = (LIBRARY, *APPLICATIONS, "tools")
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
FOLDERS = [name for name, path in SOURCES.items() if path.name == "__init__.py"]
READMES = {folder: SOURCES[folder].with_name("README.md") for folder in FOLDERS}
# One file for each command, method and step: a reader finds it by its name.
ONE_FILE_EACH = (f"{LIBRARY}.cli", f"{LIBRARY}.methods", "tools.gpu_check.steps")
MOST_LINES = 20
EVERY_MODULE = "every module"


def offered(readme: str) -> set[str] | None:
    """The files and folders that a README offers to others; None is every module."""
    _, text = re.split(r"(?=\b[Oo]thers\s+import)", readme)
    sentences = re.split(r"(?<=\.)\s", text.partition("\n\n")[0])
    said = " ".join(" ".join(part.split()) for part in sentences if "import" in part)
    return None if EVERY_MODULE in said else set(re.findall(r"`(\w+\.py|\w+/)`", said))


def module_of(target: str) -> str | None:
    """The module that an imported name belongs to, if it is one of ours."""
    parent, _, name = target.rpartition(".")
    if parent in FOLDERS and f'"{name}"' in SOURCES[parent].read_text(encoding="utf-8"):
        return parent  # listed in its __all__, whatever module has the same name
    while target and target not in SOURCES:
        target = target.rpartition(".")[0]
    return target or None


def used_from_outside(found: Iterable[Import]) -> dict[str, set[str]]:
    """The files and folders of each folder that modules outside it import."""
    used: dict[str, set[str]] = defaultdict(set)
    for item in found:
        module = module_of(item.target)
        if module is None or (within(item.module, "tools") and not within(module, "tools")):
            continue
        for folder in FOLDERS:
            if within(module, folder) and not within(item.module, folder):
                name, *inner = module.removeprefix(folder).lstrip(".").split(".")
                is_folder = inner or f"{folder}.{name}" in FOLDERS
                used[folder].add(f"{name}/" if is_folder else f"{name or '__init__'}.py")
    return used


USED = used_from_outside(
    item
    for module, path in SOURCES.items()
    for item in imports(module, path.read_text(encoding="utf-8"))
)


def test_every_folder_has_a_short_readme() -> None:
    assert len(FOLDERS) > 45
    assert [folder for folder in FOLDERS if not READMES[folder].is_file()] == []
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in READMES.items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_a_readme_names_the_modules_of_its_folder() -> None:
    unnamed = []
    for module, path in SOURCES.items():
        folder, _, name = module.rpartition(".")
        if module in FOLDERS or folder in ONE_FILE_EACH or name.startswith("__"):
            continue
        said = READMES[folder].read_text(encoding="utf-8")
        tool = within(module, "tools") and f"`{name}`" in said
        unnamed += [module] if f"`{path.name}`" not in said and not tool else []
    assert unnamed == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_readme_says_what_others_import(folder: str) -> None:
    names = offered(READMES[folder].read_text(encoding="utf-8"))
    if names is not None:
        assert names == USED[folder]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_readme_says_where_a_new_thing_goes(folder: str) -> None:
    said = READMES[folder].read_text(encoding="utf-8")
    assert re.search(r"\b[Nn]ew\b|\bSomething that\b|\bbelongs in\b", said)


def test_what_a_readme_offers_is_read() -> None:
    text = (
        "`c.py` is c. Others import `a.py`,\nand of `b/` some. They import `d.py`. A new `e.py`.\n"
    )
    assert offered(text) == {"a.py", "b/", "d.py"}
    assert offered("# x\n\nOthers import every\nmodule. It knows `a.py`.\n") is None
    assert offered("# x\n\nOthers import nothing from here.\n") == set()


def test_an_import_from_outside_is_seen() -> None:
    def used(module: str, source: str) -> dict[str, set[str]]:
        return used_from_outside(imports(module, source))

    assert used("distill.data", "from weights.io import heap") == {
        "weights": {"io/"},
        "weights.io": {"heap.py"},
    }
    assert used("weights.card", "from weights.io.heap import trim") == {"weights.io": {"heap.py"}}
    # A function that hides the module of its name.
    assert used("infer.x", "from weights import verify") == {"weights": {"__init__.py"}}
    assert used("tools.x", "from weights.io import heap") == {}
