"""VBench's list of prompts, from the user's own copy of it, and the videos that it asks for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lightx2v_sgmd.files.prompts import prompt_problem, read_prompts
from lightx2v_sgmd.measures.vbench import DIMENSIONS
from lightx2v_sgmd.outputs import content_hash
from lightx2v_sgmd.system.errors import UserError, shortened
from lightx2v_sgmd.untrusted.json_text import Limits, read_json_file
from lightx2v_sgmd.untrusted.paths import path_problem

SAMPLES: Final = 5
"""Videos of a prompt: VBench 0.1.5 looks at those numbered 0 to 4."""
FILE: Final = "VBench_full_info.json"
_PATHS: Final = (f"vbench/{FILE}", FILE)
_LIMITS: Final = Limits(size=16_000_000, values=500_000, depth=12)
_REMEDY: Final = (
    f"name VBench's {FILE}, or a checkout of VBench (github.com/Vchitect/VBench), which has it"
)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    prompt_en: str
    dimension: Annotated[list[str], Field(min_length=1)]


@dataclass(frozen=True)
class Suite:
    """The prompts of VBench.

    Attributes:
        file: The file that they are from.
        sha256: The hash of its content.
        prompts: Each prompt once, in the file's order.
        texts: The text that a video of each prompt is made from: the prompt, or its augmented form.
        prompts_of: The indices of the prompts that each dimension looks at, by its name.
        augmented: The file of augmented prompts, and the hash of its content; None without one.
    """

    file: Path
    sha256: str
    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    prompts_of: dict[str, tuple[int, ...]]
    augmented: tuple[Path, str] | None = None

    @property
    def count(self) -> int:
        """The number of videos."""
        return len(self.prompts) * SAMPLES

    @property
    def dimensions(self) -> dict[str, int]:
        """The number of videos that each dimension looks at, by its name."""
        return {name: SAMPLES * len(prompts) for name, prompts in self.prompts_of.items()}

    def there(self, videos: Collection[int]) -> dict[str, int]:
        """Counts for each dimension those of its videos that are there.

        Args:
            videos: The indices of the videos that are there.
        """
        return {
            name: sum(prompt * SAMPLES + n in videos for prompt in prompts for n in range(SAMPLES))
            for name, prompts in self.prompts_of.items()
        }

    def text(self, index: int) -> str:
        """The text that the video with that index is made from."""
        return self.texts[index // SAMPLES]

    def name(self, index: int) -> str:
        """The file name that VBench looks for: ``PROMPT-0.mp4`` to ``PROMPT-4.mp4``."""
        return f"{self.prompts[index // SAMPLES]}-{index % SAMPLES}.mp4"


def read_suite(path: Path, augmented: Path | None = None) -> Suite:
    """Reads VBench's list of prompts.

    Args:
        path: ``VBench_full_info.json``, or a folder of VBench's code that has it.
        augmented: A prompt file with another text for every entry of the list, in its order.

    Raises:
        UserError: the file is missing or something else, a prompt cannot be a file's name, or there
            are not as many augmented prompts as entries.
    """
    file = _file(path)
    try:
        entries = TypeAdapter(list[_Entry]).validate_python(read_json_file(file, _LIMITS, _REMEDY))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the content"
        raise UserError(f"{file}: {where}: {first['msg'][:80]}; {_REMEDY}") from error
    if not entries:
        raise UserError(f"{file}: has no prompts; {_REMEDY}")
    others = None if augmented is None else read_prompts(augmented)
    if others is not None and len(others) != len(entries):
        raise UserError(
            f"--augmented: {augmented} has {len(others)} prompt{'s' if len(others) != 1 else ''}, "
            f"but {file} has {len(entries)}; "
            "write one for each entry, in the same order"
        )
    texts: dict[str, str] = {}
    numbers: dict[str, int] = {}
    prompts_of: dict[str, tuple[int, ...]] = {}
    for index, entry in enumerate(entries):
        _check(file, index, entry)
        texts.setdefault(entry.prompt_en, entry.prompt_en if others is None else others[index])
        number = numbers.setdefault(entry.prompt_en, len(numbers))
        for name in entry.dimension:
            prompts_of[name] = (*prompts_of.get(name, ()), number)
    return Suite(
        file=file,
        sha256=content_hash(file),
        prompts=tuple(texts),
        texts=tuple(texts.values()),
        prompts_of=prompts_of,
        augmented=None if augmented is None else (augmented, content_hash(augmented)),
    )


def _file(path: Path) -> Path:
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"--vbench: {path} does not exist; {_REMEDY}")
        return path
    for name in _PATHS:
        if (path / name).is_file():
            return path / name
    raise UserError(f"--vbench: {path} has no {_PATHS[0]}; {_REMEDY}")


def _check(file: Path, index: int, entry: _Entry) -> None:
    prompt = entry.prompt_en
    problem = prompt_problem(prompt) or path_problem(f"{prompt}-{SAMPLES - 1}.mp4")
    if not problem and ("/" in prompt or prompt != prompt.strip() or not prompt):
        problem = "is not a file name"
    if problem:
        raise UserError(f"{file}: prompt {index}: {shortened(prompt)!r} {problem}; correct it")
    for name in entry.dimension:
        if name not in DIMENSIONS:
            raise UserError(
                f"{file}: prompt {index}: {shortened(name)!r} is not a dimension of VBench; "
                f"{_REMEDY}"
            )
