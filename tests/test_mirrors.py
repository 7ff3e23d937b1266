"""A module's test is found by its name: the test of ``infer/vae/layers.py`` is
``tests/infer/vae/test_layers.py``, and the library's folders stand at the top of ``tests/``.

Modules that are tested together, through what they make together, are listed here with the test
that goes red when they break. The list only shrinks: a new module comes with its own test.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import LONGEST

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lightx2v_sgmd", "distill", "infer", "weights")

TOGETHER = {
    # A few iterations of training, compared with a plain rewrite of the algorithm.
    "distill/test_trainer.py": ("distill/building.py",),
    "distill/test_pretraining.py": ("lightx2v_sgmd/parallel/discriminator.py",),
    "distill/planning/test_memory.py": ("distill/planning/metered_passes.py",),
    "distill/running/test_run.py": ("distill/running/recorders.py",),
    "distill/running/test_launch.py": ("distill/running/reports.py",),
    "job/from_lightx2v/test_convert.py": (
        "lightx2v_sgmd/job/from_lightx2v/interpolation.py",
        "lightx2v_sgmd/job/from_lightx2v/notes.py",
        "lightx2v_sgmd/job/from_lightx2v/values.py",
    ),
    "job/test_wan_jobs.py": ("lightx2v_sgmd/families/wan/sampling.py",),
    "apps/comparison/test_compare.py": (
        "lightx2v_sgmd/apps/comparison/folder.py",
        "lightx2v_sgmd/apps/comparison/page.py",
    ),
    "apps/evaluation/scores/test_features.py": ("lightx2v_sgmd/measures/network_features.py",),
    "apps/evaluation/test_evaluate.py": ("lightx2v_sgmd/apps/evaluation/scores/scoring.py",),
    "apps/evaluation/test_measuring.py": ("lightx2v_sgmd/measures/video.py",),
    "apps/evaluation/test_shards.py": ("lightx2v_sgmd/apps/evaluation/shard_worker.py",),
    "apps/watch/test_api.py": ("lightx2v_sgmd/apps/watch/watching.py",),
    "apps/comparison/test_plan.py": ("lightx2v_sgmd/apps/comparison/planning.py",),
    "apps/comparison/test_tables.py": ("lightx2v_sgmd/apps/comparison/plots.py",),
    "apps/comparison/test_running.py": ("lightx2v_sgmd/apps/comparison/tasks.py",),
    # Opened, run and exported, and compared with the stock pipeline.
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
        "lightx2v_sgmd/families/ddim.py",
        "lightx2v_sgmd/families/sdxl/forward.py",
        "lightx2v_sgmd/families/sdxl/opening.py",
        "lightx2v_sgmd/families/sdxl/published.py",
        "lightx2v_sgmd/families/sdxl/text.py",
        "lightx2v_sgmd/untrusted/sdxl.py",
    ),
    "families/test_every_family.py": (
        "lightx2v_sgmd/families/cogvideox/forward.py",
        "lightx2v_sgmd/families/cogvideox/text.py",
        "lightx2v_sgmd/families/sd3/forward.py",
        "lightx2v_sgmd/families/image_model.py",
        "lightx2v_sgmd/families/loading.py",
    ),
    "families/test_base.py": (
        "lightx2v_sgmd/families/encoders.py",
        "lightx2v_sgmd/families/opening.py",
        "lightx2v_sgmd/families/stock_pipeline.py",
    ),
    "families/test_teacher.py": (
        "lightx2v_sgmd/families/features.py",
        "lightx2v_sgmd/families/lora/updates.py",
    ),
    # Each kind of file is inspected through the one function.
    "families/inspection/test_inspecting.py": (
        "lightx2v_sgmd/families/inspection/facts.py",
        "lightx2v_sgmd/families/inspection/loras.py",
        "lightx2v_sgmd/families/inspection/networks.py",
    ),
    "families/wan/test_model.py": (
        "lightx2v_sgmd/families/wan/forward.py",
        "lightx2v_sgmd/families/wan/opening.py",
    ),
    "families/sources/test_parts.py": (
        "lightx2v_sgmd/families/wan/original.py",
        "lightx2v_sgmd/families/wan/sources.py",
    ),
    "files/tensors/test_tensor_copy.py": ("lightx2v_sgmd/files/tensors/tensor_reader.py",),
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
    "infer/serve/work/test_worker.py": ("infer/serve/work/maker.py",),
    # Files of weights as other programs write them, opened and run.
    "infer/test_wild_weights.py": (
        "lightx2v_sgmd/families/wan/variants.py",
        "lightx2v_sgmd/files/tensors/scaled_weights.py",
    ),
    "methods/test_tsg_fisher.py": ("lightx2v_sgmd/methods/tsg.py",),
    "networks/test_fused_blocks.py": ("lightx2v_sgmd/networks/block_modulation.py",),
    "networks/test_attention.py": ("lightx2v_sgmd/networks/kernel_names.py",),
    "networks/test_compiled_passes.py": ("lightx2v_sgmd/system/compilers.py",),
    "parallel/test_local.py": ("lightx2v_sgmd/parallel/base.py",),
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
    "untrusted/test_configs.py": ("lightx2v_sgmd/untrusted/fields.py",),
    "weights/formats/test_lora.py": (
        "weights/formats/layout.py",
        "weights/formats/lora_losses.py",
        "weights/formats/lora_usage.py",
    ),
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
