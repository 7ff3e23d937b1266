"""``lightx2v-sgmd evaluate --vbench``: VBench's videos, scores and aggregates."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.apps.evaluation.making import (
    check_guidance,
    guidance_facts,
    guidance_of,
    range_videos,
)
from lightx2v_sgmd.apps.evaluation.options import EvaluateOptions
from lightx2v_sgmd.apps.evaluation.reusing import all_videos
from lightx2v_sgmd.apps.evaluation.shards import Shard, ShardedCall, folder_of, make_shards
from lightx2v_sgmd.apps.evaluation.sources import VideoSource, open_source, wanted_size
from lightx2v_sgmd.apps.vbench.package import RESULTS, find_package, run_package
from lightx2v_sgmd.apps.vbench.page import report_page
from lightx2v_sgmd.apps.vbench.results import PATTERN, find_results, read_results
from lightx2v_sgmd.apps.vbench.suite import Suite, read_suite
from lightx2v_sgmd.apps.vbench.summary import summarise
from lightx2v_sgmd.apps.vbench.videos import VIDEOS, given_videos, link
from lightx2v_sgmd.files.manifest import VideoFacts
from lightx2v_sgmd.files.video import check_writable
from lightx2v_sgmd.outputs import WrittenFiles, locked_folder, refuse_overlap, resolved
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import RunError, UserError

__all__ = ["VBenchOptions", "evaluate_vbench"]

FILES: Final = ("metrics.json", "report.html")


@dataclass(frozen=True)
class VBenchOptions:
    """The options of VBench.

    Attributes:
        suite: ``VBench_full_info.json``, or a checkout of VBench.
        augmented: A prompt file with another text for every entry of the list, in its order.
        shard: The part of the videos that this call makes; it then measures nothing.
        nproc: Number of processes on this machine, each on its own GPU, that make the videos.
        results: Result files of vbench, or folders of them, that are read in place of running it.
        python: A Python that has the package vbench; None looks in this one.
    """

    suite: Path
    augmented: Path | None = None
    shard: Shard | None = None
    results: tuple[Path, ...] = ()
    python: Path | None = None
    nproc: int = 1


def evaluate_vbench(
    weights: str | Path,
    out: str | Path,
    vbench: VBenchOptions,
    options: EvaluateOptions | None = None,
    quiet: bool = False,
) -> dict[str, Any] | None:
    """Makes VBench's videos, measures them, and writes ``metrics.json`` and ``report.html``.

    Videos and results that are there are not made again; the same call resumes one that was
    stopped.

    Args:
        weights: A student that ``export`` wrote, a teacher, or a folder of mp4 files that bear
            VBench's names.
        out: The folder for everything.
        vbench: The prompts, the shard, and who measures.
        options: Seed, size, steps, guidance and device.
        quiet: Show no progress.

    Returns:
        The content of ``metrics.json``; None for a shard, which only makes videos.

    Raises:
        UserError: something that was asked for cannot be; nothing has been made.
        RunError: videos could not be made, or vbench failed on a dimension; the report then has
            the others.
    """
    options = options or EvaluateOptions()
    suite = read_suite(vbench.suite, vbench.augmented)
    source = open_source(weights, "--weights")
    check_guidance(options, [source])
    if vbench.shard is not None and source.kind == "videos":
        raise UserError(
            "--shard: is for making videos, and --weights is a folder of them; leave it out"
        )
    if vbench.nproc > 1 and (vbench.shard is not None or source.kind == "videos"):
        raise UserError(
            "--nproc: makes all videos of weights; leave it out for a folder of videos and with "
            "--shard"
        )
    asked = (options.height, options.width, options.num_frames)
    size = None if source.kind == "videos" else wanted_size(source, None, *asked)
    files = find_results(vbench.results)
    package = None if files or vbench.shard is not None else find_package(vbench.python)
    folder = resolved(out)
    refuse_overlap(folder, {"--weights": source.folder, "--vbench": suite.file})
    check_writable(out, folder=True)
    make = functools.partial(_make, source, suite, size, options, quiet)
    if vbench.shard is not None:
        first, end = vbench.shard.range(suite.count)
        if first < end:
            make(first, end, folder / VIDEOS / folder_of(first, end))
        note(
            f"videos {first} to {end - 1} of {suite.count} are there; when those of all shards are "
            "below one folder, run the command without --shard",
            quiet,
        )
        return None
    if vbench.nproc > 1:
        texts = None if vbench.augmented is None else str(vbench.augmented)
        call = ShardedCall(source.path, str(folder), suite=str(vbench.suite), augmented=texts)
        WrittenFiles(folder).check(FILES)  # now, before the work, and again with the lock
        make_shards(call, options, vbench.nproc, suite.count, quiet)
    with locked_folder(folder, "evaluate", quiet):
        written = WrittenFiles(folder)
        written.check(FILES)
        videos = (
            given_videos(suite, [file.resolve() for file in source.files])
            if source.kind == "videos"
            else all_videos(folder / VIDEOS, suite.count, make, vbench.nproc)
        )
        links = link(suite, videos, folder)
        failed: list[str] = []
        if package is not None:
            wanted = [name for name, count in suite.there(videos).items() if count]
            place, python = folder / RESULTS, vbench.python
            failed = run_package(suite.file, links, place, wanted, python, options.device, quiet)
        files = files or sorted((folder / RESULTS).glob(PATTERN))
        if not files and not failed:
            note(
                f"nothing measured the videos: install vbench and name its Python by "
                f"--vbench-python, or run it elsewhere on {links} and name its results by "
                "--vbench-results",
                quiet,
            )
        setup = _setup(source, size, options, package, files)
        results = summarise(suite, videos, read_results(files), setup)
        written.write_text("metrics.json", json.dumps(results, indent=1) + "\n")
        written.write_text("report.html", report_page(results))
    if failed:
        others = f" and on {len(failed) - 1} more dimensions" if len(failed) > 1 else ""
        raise RunError(
            f"vbench failed on {failed[0]}{others}; {folder / 'report.html'} has the others; run "
            "the same command again, or give results made elsewhere by --vbench-results DIR"
        )
    return results


def _make(
    source: VideoSource,
    suite: Suite,
    size: VideoFacts | None,
    options: EvaluateOptions,
    quiet: bool,
    first: int,
    end: int,
    out: Path,
) -> Sequence[Path]:
    """Makes a range of videos; see ``reusing.Make``."""
    assert size is not None, "a model's videos have a size"
    texts = [suite.text(index) for index in range(first, end)]
    guidance = guidance_of(options, [source])
    return range_videos(source, texts, size, guidance, options, first, out, quiet)


def _setup(
    source: VideoSource,
    size: VideoFacts | None,
    options: EvaluateOptions,
    package: dict[str, Any] | None,
    files: Sequence[Path],
) -> dict[str, Any]:
    """The weights, settings and versions that the scores belong to."""
    setup: dict[str, Any] = {"weights": source.path, "kind": source.kind}
    if size is not None:
        from importlib.metadata import version

        setup["size"] = f"{size.width}x{size.height}, {size.num_frames} frames, {size.fps:g} fps"
        setup |= {"first_seed": options.seed, "torch": version("torch")}
    if source.kind == "student":
        setup["nfe"] = source.nfe
        if source.manifest is not None:
            setup |= {"method": source.manifest.method["name"], "step": source.manifest.step}
    if source.kind == "teacher":
        setup |= guidance_facts(options, source, [source])
    if package is not None:
        setup |= {"vbench": package["vbench"], "vbench_torch": package["torch"]}
    setup["results"] = ", ".join(sorted({str(file.parent) for file in files})) or None
    return setup
