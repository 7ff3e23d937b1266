"""A module's test is found by its name: the test of ``infer/vae/layers.py`` is
``tests/infer/vae/test_layers.py``, and the library's folders stand at the top of ``tests/``.

Modules that are tested together, through what they make together, are listed here with the test
that goes red when they break, and with the reason. The list only shrinks: a new module comes with
its own test.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import LONGEST

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lightx2v_sgmd", "distill", "infer", "weights")

TOGETHER = {
    # A job becomes a trainer in one call; its parts are what a few iterations then use.
    "distill/test_trainer.py": ("distill/building.py",),
    # Heads, frozen features and their gradients, in the only iteration that has all of them.
    "distill/test_pretraining.py": ("lightx2v_sgmd/parallel/discriminator.py",),
    # A stand-in is right if the metered bytes are those of the real passes.
    "distill/planning/test_rank_memory.py": ("distill/planning/metered_passes.py",),
    # What a run leaves on disk, read after a run.
    "distill/running/test_run.py": ("distill/running/recorders.py",),
    # Notes need the table of their keys and a YAML as their trainer has it.
    "job/from_lightx2v/test_convert.py": ("lightx2v_sgmd/job/from_lightx2v/notes.py",),
    # A table of published settings, which is right if the shipped jobs have them.
    "job/test_wan_jobs.py": ("lightx2v_sgmd/families/wan/sampling.py",),
    # A comparison that has run: its folder, its page, its curves and its pieces of work.
    "apps/comparison/test_compare.py": (
        "lightx2v_sgmd/apps/comparison/folder.py",
        "lightx2v_sgmd/apps/comparison/page.py",
    ),
    "apps/comparison/test_plan.py": ("lightx2v_sgmd/apps/comparison/planning.py",),
    "apps/comparison/test_tables.py": ("lightx2v_sgmd/apps/comparison/plots.py",),
    "apps/comparison/test_running.py": ("lightx2v_sgmd/apps/comparison/tasks.py",),
    # Features and scores are those of an evaluation's videos; a shard is a process that makes them.
    "apps/evaluation/scores/test_features.py": ("lightx2v_sgmd/measures/network_features.py",),
    "apps/evaluation/test_evaluate.py": ("lightx2v_sgmd/apps/evaluation/scores/scoring.py",),
    "apps/evaluation/test_shards.py": ("lightx2v_sgmd/apps/evaluation/shard_worker.py",),
    # The command is checks and one call of the server that these requests go to.
    "apps/watch/test_api.py": ("lightx2v_sgmd/apps/watch/watching.py",),
    # A family's parts are opened, run and exported together, and compared with the stock pipeline:
    # each alone could only be compared with itself. Limits of configurations are met there as well.
    "families/cogvideox/test_model.py": (
        "lightx2v_sgmd/families/cogvideox/published.py",
        "lightx2v_sgmd/untrusted/cogvideox.py",
    ),
    "families/sd3/test_model.py": (
        "lightx2v_sgmd/families/sd3/published.py",
        "lightx2v_sgmd/families/sd3/text.py",
        "lightx2v_sgmd/untrusted/sd3.py",
    ),
    "families/sdxl/test_model.py": (
        "lightx2v_sgmd/families/sdxl/forward.py",
        "lightx2v_sgmd/families/sdxl/opening.py",
        "lightx2v_sgmd/families/sdxl/published.py",
        "lightx2v_sgmd/families/sdxl/text.py",
        "lightx2v_sgmd/untrusted/sdxl.py",
    ),
    "families/wan/test_model.py": ("lightx2v_sgmd/families/wan/forward.py",),
    # The same tests for every family, a new one included.
    "families/test_every_family.py": (
        "lightx2v_sgmd/families/cogvideox/forward.py",
        "lightx2v_sgmd/families/cogvideox/text.py",
        "lightx2v_sgmd/families/sd3/forward.py",
        "lightx2v_sgmd/families/image_model.py",
        "lightx2v_sgmd/families/loading.py",
    ),
    # Protocols, and the functions that choose a family: what every family has to offer.
    "families/test_base.py": (
        "lightx2v_sgmd/families/encoders.py",
        "lightx2v_sgmd/families/opening.py",
        "lightx2v_sgmd/families/stock_pipeline.py",
    ),
    # Abilities are asked for, and LoRAs merged, where a teacher is loaded.
    "families/test_teacher.py": (
        "lightx2v_sgmd/families/features.py",
        "lightx2v_sgmd/families/lora/updates.py",
    ),
    # Each kind of file is inspected through the one function.
    "families/inspection/test_inspecting.py": (
        "lightx2v_sgmd/families/inspection/loras.py",
        "lightx2v_sgmd/families/inspection/networks.py",
    ),
    # The parts of a model are found alike in either layout.
    "families/sources/test_parts.py": (
        "lightx2v_sgmd/families/wan/original.py",
        "lightx2v_sgmd/families/wan/sources.py",
    ),
    # A copy reads every kind of file through the reader.
    "files/tensors/test_tensor_copy.py": ("lightx2v_sgmd/files/tensors/tensor_reader.py",),
    # Parts move between devices while an engine makes videos.
    "infer/test_engine.py": ("infer/parts.py",),
    # Requests to the server's application, with a stand-in for the worker.
    "infer/serve/api/test_app.py": (
        "infer/serve/api/answers.py",
        "infer/serve/backend.py",
    ),
    # The real command, whose worker and server are killed.
    "infer/serve/test_server.py": (
        "infer/serve/listening.py",
        "infer/serve/work/messages.py",
    ),
    # The worker's loop is the maker's only caller.
    "infer/serve/work/test_worker.py": ("infer/serve/work/maker.py",),
    # Files of weights as other programs write them, opened and run.
    "infer/test_wild_weights.py": ("lightx2v_sgmd/files/tensors/scaled_weights.py",),
    # A compiler is found good if it compiles these passes.
    "networks/test_compiled_passes.py": ("lightx2v_sgmd/system/compilers.py",),
    # The protocol and the tensors that both strategies share, tested by using one.
    "parallel/test_local.py": ("lightx2v_sgmd/parallel/base.py",),
    # Parts of one strategy, which run only in processes that DeepSpeed joined.
    "parallel/zero3/test_strategy.py": (
        "lightx2v_sgmd/parallel/zero3/engines.py",
        "lightx2v_sgmd/parallel/zero3/master_weights.py",
        "lightx2v_sgmd/parallel/zero3/moving_average.py",
        "lightx2v_sgmd/parallel/zero3/two_forwards.py",
    ),
    # Folders of a stranger, each hostile in one way, opened by every command.
    "untrusted/test_hostile.py": (
        "lightx2v_sgmd/untrusted/building.py",
        "lightx2v_sgmd/untrusted/tokenizer.py",
        "lightx2v_sgmd/untrusted/tokenizer_json.py",
    ),
    # What a file of adapters says and loses is read from files of adapters.
    "weights/formats/test_lora.py": (
        "weights/formats/layout.py",
        "weights/formats/lora_losses.py",
        "weights/formats/lora_usage.py",
    ),
    # What every format copies, opens and writes, tested over the formats.
    "weights/test_formats.py": ("weights/io/shared.py",),
    "weights/test_opening.py": ("weights/io/source.py",),
    "weights/io/test_tensors.py": ("weights/io/network.py",),
}
ELSEWHERE = {module: test for test, modules in TOGETHER.items() for module in modules}


def modules() -> list[str]:
    found = (path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    names = (path.relative_to(ROOT).as_posix() for path in found)
    return sorted(name for name in names if not name.endswith(("/__init__.py", "/__main__.py")))


def test_of(module: str) -> str:
    """The path below ``tests/`` at which a reader looks for a module's test."""
    folder, name = module.removeprefix("lightx2v_sgmd/").rpartition("/")[::2]
    return f"{folder}/test_{name}".removeprefix("/")


test_of.__test__ = False  # type: ignore[attr-defined]  # the name of a helper, not of a test


def is_there(test: str) -> bool:
    return (ROOT / "tests" / test).is_file()


def unfound(every: list[str]) -> list[str]:
    """The modules for which no test is found."""
    return [module for module in every if not is_there(test_of(module)) and module not in ELSEWHERE]


def test_every_module_has_a_test_of_its_name() -> None:
    assert unfound(modules()) == []


def test_a_module_without_a_test_is_seen() -> None:
    assert len(modules()) > 200
    assert unfound(["infer/vae/new.py", "infer/vae/layers.py"]) == ["infer/vae/new.py"]


@pytest.mark.parametrize("module", sorted(ELSEWHERE))
def test_the_list_has_no_module_that_needs_no_entry(module: str) -> None:
    assert (ROOT / module).is_file(), "there is no such module"
    assert not is_there(test_of(module)), "it has a test of its own name: drop the entry"
    assert is_there(ELSEWHERE[module])


def test_the_longest_files_are_there() -> None:
    assert [name for name in LONGEST if not is_there(name)] == []
