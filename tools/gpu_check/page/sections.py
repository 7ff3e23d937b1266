"""The page's tables, a function for each; each has its rows even when nothing was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from distill.planning.flops import forward_operations
from lightx2v_sgmd.families.text_rows import TEXT_LENGTH
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.networks.attention import KERNELS
from tools.gpu_check.page.goals import rows
from tools.gpu_check.page.training_bounds import Least, least_seconds, training_rate
from tools.models.random_wan import SHAPES

UNKNOWN = "not measured yet"
Row = dict[str, Any]
Data = dict[str, Any]


def all_of(data: Data) -> list[str]:
    """Every section, in order."""
    return [
        section(data) for section in (ceilings, attention, bundled, forward, bounds, decode)
    ] + [section(data) for section in (video, training, tests)]


def markdown_table(head: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    every = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *every))


def number(value: Any, digits: int = 2, unit: str = "") -> str:
    """A figure in words, or that it is not there."""
    if not isinstance(value, int | float):
        return UNKNOWN
    return f"{value:.{digits}f}{unit}"


def _why(row: Row) -> str | None:
    """The reason why a row has no figures, or None."""
    for key, words in (("error", "failed"), ("unavailable", "not here"), ("skipped", "no time")):
        if key in row:
            return f"{words}: {row[key]}" if key != "skipped" else words
    return None if row else UNKNOWN


def _table(
    head: list[str],
    found: dict[str, Row],
    labels: list[str],
    cells: Callable[[Row], list[str]],
) -> str:
    """Rows by label, first those that are expected; a row without figures says why."""
    every = [*labels, *(label for label in found if label not in labels)]
    lines = []
    for label in every:
        row = found.get(label, {})
        reason = _why(row)
        blank = [""] * (len(head) - 2)
        lines.append([label, *([reason, *blank] if reason else cells(row))])
    return markdown_table(head, lines)


def _ceilings(data: Data) -> dict[str, float]:
    found: dict[str, float] = data["steps"].get("limits", {}).get("ceilings", {})
    return found


def ceilings(data: Data) -> str:
    """The limits of the machine itself."""
    found = _ceilings(data)
    lines = [
        ["bf16 product, 8192 cubed", _tera(found.get("flops_bf16"), "TFLOP/s")],
        ["float32 product in TF32", _tera(found.get("flops_tf32"), "TFLOP/s")],
        ["fp8 product, a scale for each row", _tera(found.get("flops_fp8"), "TFLOP/s")],
        ["copy, read and write", _tera(found.get("bandwidth"), "TB/s", 2)],
        ["an operation on four numbers", _micro(found.get("launch"))],
    ]
    return f"## Ceilings\n\n{markdown_table(['what', 'measured'], lines)}"


def _tera(value: float | None, unit: str, digits: int = 0) -> str:
    return UNKNOWN if value is None else f"{value / 1e12:.{digits}f} {unit}"


def _micro(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value * 1e6:.1f} us"


def attention(data: Data) -> str:
    """Each kernel's rate and error."""
    ceiling = _ceilings(data).get("flops_bf16")

    def cells(row: Row) -> list[str]:
        own, text = row["self"], row["text"]
        share = own["tflops"] * 1e12 / ceiling if ceiling else None
        return [
            number(own["ms"], 2),
            number(own["tflops"], 0),
            UNKNOWN if share is None else f"{share:.0%}",
            f"{own['relative_error']:.1e}",
            number(text["ms"], 2),
            f"{text['relative_error']:.1e}",
        ]

    head = ["kernel", "ms", "TFLOP/s", "of the bf16 product", "error", "text, ms", "text, error"]
    table = _table(head, rows(data, "attention"), list(KERNELS), cells)
    note = (
        "One call at the network's shape ([1, 32760, 40, 128] at 14B) on its own tokens, and on "
        "512 rows of text. The error is relative, to float64 on 257 rows from first to last."
    )
    return f"## Attention kernels\n\n{note}\n\n{table}"


def bundled(data: Data) -> str:
    """Real weights on the GPU against the CPU."""

    def cells(row: Row) -> list[str]:
        return [
            f"{row['latents_max_difference']:.1e}",
            str(row["frames_max_difference"]),
            number(row["frames_mean_difference"], 3),
            str(row["attention"]),
        ]

    head = [
        "run as",
        "latents, largest difference",
        "frames, largest (of 255)",
        "mean",
        "attention",
    ]
    labels = ["float32, TF32 off", "float32, as it is", "bfloat16, eager", "defaults"]
    table = _table(head, rows(data, "bundled"), labels, cells)
    return f"## The bundled teacher, against float32 on the CPU\n\n{table}"


def forward(data: Data) -> str:
    """Stock and engine, and the engine with each kernel."""
    found = rows(data, "forward")
    stock = found.get("stock, eager", {}).get("ms")
    ceiling = _ceilings(data).get("flops_bf16")

    def cells(row: Row) -> list[str]:
        share = row["tflops"] * 1e12 / ceiling if ceiling else None
        return [
            number(row["ms"], 0),
            number(stock / row["ms"]) if stock else UNKNOWN,
            UNKNOWN if share is None else f"{share:.0%}",
            number(row["first_s"], 1),
            number(row.get("peak_gib"), 1),
            number(row["needed_gib"], 1) if "needed_gib" in row else "",
            f"{row['difference_to_stock']:.1e}" if "difference_to_stock" in row else "0",
            str(row["attention"]),
        ]

    head = ["network", "ms", "times stock eager", "of the bf16 product", "first, s"]
    head += ["peak GiB", "planned GiB", "difference to stock", "attention"]
    labels = ["stock, eager", "stock, compiled", "engine, as it comes", "engine, eager"]
    main = _table(head, found, [*labels, "engine, fp8"], cells)
    others = _table(head, rows(data, "kernels"), [], cells) if rows(data, "kernels") else UNKNOWN
    return (
        "## One forward\n\nRandom weights of the shape; the difference is relative, of the first "
        "step's velocity. *peak* is PyTorch's alone; *planned* is the engine's plan for the "
        "network by itself, with what CUDA takes beside PyTorch."
        f"\n\n{main}\n\nCompiled, with each exact kernel:\n\n{others}"
    )


def bounds(data: Data) -> str:
    """The time of each part of a forward, beside the least that it could be."""
    head = ["network", "part", "ms", "least, ms", "how far"]
    lines = [line for label, row in _tabled(data) for line in _parts(data, label, row)]
    if not lines:
        lines = [["engine, as it comes", part, UNKNOWN, UNKNOWN, UNKNOWN] for part in _PARTS]
    note = (
        "*least*: products at the rate of the machine's own large product, attention at the best "
        "rate that an exact kernel reached above; elementwise kernels and idle time would be none "
        "at best."
    )
    slow = []
    for label, row in _tabled(data):
        top = [[str(ms), str(count), f"`{name}`"] for ms, count, name in row.get("slowest", [])]
        slow.append(
            f"Slowest kernels, {label}:\n\n{markdown_table(['ms', 'calls', 'kernel'], top)}"
        )
    return "\n\n".join(["### What bounds it", note, markdown_table(head, lines), *slow])


_PARTS = ("product", "attention", "elementwise", "copy", "idle")


def _tabled(data: Data) -> Iterator[tuple[str, Row]]:
    for label, row in rows(data, "forward").items():
        if "kernels_ms" in row:
            yield label, row


def _parts(data: Data, label: str, row: Row) -> Iterator[list[str]]:
    spent = row["kernels_ms"]
    least = least_ms(data, "fp8" in label)
    widest = max(spent, key=lambda part: spent[part])
    for part in sorted(spent, key=lambda part: -spent[part]):
        floor = least.get(part)
        far = f"{spent[part] / floor:.2f} times" if floor else ""
        name = f"**{part}**" if part == widest else part
        yield [label, name, number(spent[part], 0), number(floor, 0) if floor else "", far]


def network_blocks(data: Data) -> int:
    """The number of the network's blocks."""
    return int(open_wan(SHAPES[data["shape"]]).transformer_config["num_layers"])


def least_ms(data: Data, fp8: bool) -> dict[str, float]:
    """Milliseconds of products and attention at the rates that the run reached."""
    model = open_wan(SHAPES[data["shape"]])
    tokens = model.token_count(*data["size"])
    work = forward_operations(model.transformer_config, tokens, TEXT_LENGTH)
    rate = _ceilings(data).get("flops_fp8" if fp8 else "flops_bf16")
    kernels = [
        row["tflops"]
        for row in rows(data, "attention").values()
        if "tflops" in row and "approximate" not in row["kernel"]
    ]
    least = {}
    if rate:
        least["product"] = work.linear / rate * 1e3
    if kernels:
        least["attention"] = work.attention / (max(kernels) * 1e12) * 1e3
    return least


def decode(data: Data) -> str:
    """The VAE."""
    found = {**rows(data, "vae"), **rows(data, "decodes")}
    stock = found.get("stock diffusers", {}).get("s")
    least = _least_decode_s(data)

    def cells(row: Row) -> list[str]:
        kinds = row.get("kernels_ms", {})
        bound = max(kinds, key=lambda kind: kinds[kind]) if kinds else ""
        share = f"{bound} {kinds[bound] / sum(kinds.values()):.0%}" if bound else ""
        return [
            number(row["s"], 2),
            number(stock / row["s"]) if stock else UNKNOWN,
            number(row["s"] / least, 1, " times") if least else UNKNOWN,
            number(row.get("peak_gib"), 1),
            str(row.get("levels_max", 0)),
            number(row.get("levels_mean", 0.0), 3),
            str(row.get("launches", "")),
            share,
        ]

    head = ["decode", "s", "times stock", "of the least in TF32", "peak GiB"]
    head += ["frames, largest difference (of 255)", "mean", "launches", "bound by"]
    labels = ["stock diffusers", "engine, as it comes", "engine, bfloat16", "engine, TF32 off"]
    note = (
        "*least*: its convolutions' operations at the rate of the machine's large product in TF32. "
        "*bound by*: the kind of kernel that takes most of the time. Differences are to stock "
        "diffusers' decode of whole frames; random latents show a tile's borders more than a video."
    )
    return f"## The VAE's decode\n\n{note}\n\n{_table(head, found, labels, cells)}"


def _least_decode_s(data: Data) -> float | None:
    """Seconds of the decode's operations at the rate of a TF32 product."""
    tflop = rows(data, "vae").get("stock diffusers", {}).get("tflop")
    rate = _ceilings(data).get("flops_tf32")
    return tflop * 1e12 / rate if tflop and rate else None


def _least_s(data: Data, stage: str) -> float | None:
    """The least that a stage of a whole video could take at the rates that the run reached."""
    if stage == "decode":
        return _least_decode_s(data)
    if stage == "denoise" and data["steps"]:
        least = least_ms(data, fp8=False)
        return 4 * sum(least.values()) / 1e3 if len(least) == 2 else None
    return None


def video(data: Data) -> str:
    """A whole video by stage, with memory."""
    row = rows(data, "video").get("engine, as it comes", {})
    reason = _why(row)
    lines = []
    needed, measured = row.get("needed_gib", {}), row.get("measured_gib", {})
    for stage in ("load", "text", "denoise", "decode", "total"):
        if reason:
            lines.append([stage, reason, *[UNKNOWN] * 5])
            continue
        ratio = row.get("memory_ratio", {}).get(stage)
        load = stage == "load"
        lines.append(
            [
                stage,
                number(row.get("load_s") if load else row.get("first", {}).get(stage)),
                "" if load else number(row.get("second", {}).get(stage)),
                number(least) if (least := _least_s(data, stage)) else "",
                number(needed.get(stage), 1) if stage != "total" else "",
                number(measured.get(stage), 1) if stage != "total" else "",
                f"{ratio:.2f}" if ratio else "",
            ]
        )
    head = ["stage", "first video, s", "second, s", "least, s", "planned GiB", "measured GiB"]
    head += ["ratio"]
    return f"## A whole video of four steps\n\n{markdown_table(head, lines)}"


def training(data: Data) -> str:
    """Iterations by phase."""
    found = {**rows(data, "training"), **rows(data, "selective")}
    ceiling = _ceilings(data).get("flops_bf16")

    def cells(row: Row) -> list[str]:
        if "iteration_s" not in row:
            return [UNKNOWN] * 8
        share = row["tflops_per_s"] * 1e12 / ceiling if ceiling else None
        phases = sorted(row["phases_s"].items(), key=lambda item: -item[1])
        return [
            number(row["iteration_s"]),
            f"{row['mfu']:.1%}" if "mfu" in row else UNKNOWN,
            f"{row['mfu_useful']:.1%}" if "mfu_useful" in row else UNKNOWN,
            UNKNOWN if share is None else f"{share:.1%}",
            ", ".join(f"{name} {seconds:.2f}" for name, seconds in phases if seconds > 0),
            number(row.get("peak_memory_gib"), 1),
            number(row.get("planned_memory_gib", {}).get("total"), 1),
            number(row.get("memory_to_plan")),
        ]

    head = ["strategy", "s an iteration", "MFU", "MFU without recomputation"]
    head += ["of the bf16 product", "phases, s", "peak GiB", "planned GiB", "ratio"]
    table = _table(head, found, ["local", "zero3", "local, selective"], cells)
    note = (
        "SGMD at the 1.3B shape, 480x832, 81 frames, one video, one GPU, no accumulation, gradient "
        "checkpointing as the shipped job has it. *MFU*: the share of the data sheet's rate, with "
        "the operations that checkpointing computes twice counted twice; the next column counts "
        "them once. *local, selective* stores the outputs of attention instead of computing them "
        "twice (`parallel.gradient_checkpointing: selective`)."
    )
    return f"## Training\n\n{note}\n\n{table}\n\n{_training_bounds(data, found)}"


def _training_bounds(data: Data, found: dict[str, Row]) -> str:
    """The time of each phase beside the least that it could be."""
    head = ["strategy", "phase", "s", "least, s", "products, s", "attention, s", "how far"]
    product, attention = _ceilings(data).get("flops_bf16"), training_rate(rows(data, "attention"))
    lines = []
    for label, row in found.items():
        if "iteration_s" not in row:
            continue
        least: dict[str, Least] = {}
        if product and attention:
            least = least_seconds(data["shape"], label, row, product, attention)
        if least:
            each = [*least.values()]
            least["**whole iteration**"] = Least(
                sum(one.product for one in each), sum(one.attention for one in each)
            )
        spent = {**row["phases_s"], "**whole iteration**": row["iteration_s"]}
        for phase in sorted(spent, key=lambda phase: -spent[phase]):
            if spent[phase] > 0:
                lines.append([label, phase, *_phase(spent[phase], least.get(phase))])
    if not lines:
        lines = [["local", "whole iteration", *[UNKNOWN] * 5]]
    note = (
        "*least*: products at the rate of the machine's own large product, attention at the best "
        "rate above of a kernel that has a backward pass (PyTorch's own), one after the other; "
        "the larger part is bold. Backward passes are counted at the rates of forward ones, "
        "since no other was measured; norms, gates, the optimizer and idle time would take nothing "
        "at best."
    )
    return f"### What bounds training\n\n{note}\n\n{markdown_table(head, lines)}"


def _phase(seconds: float, least: Least | None) -> list[str]:
    """The cells of a phase from its seconds on."""
    if least is None:
        return [number(seconds), "", "", "", ""]
    parts = [number(least.product), number(least.attention)]
    bound = int(least.attention > least.product)
    parts[bound] = f"**{parts[bound]}**"
    return [number(seconds), number(least.total), *parts, f"{seconds / least.total:.2f} times"]


def tests(data: Data) -> str:
    """The results of the GPU tests."""
    found = rows(data, "tests")
    if not found:
        return f"## GPU tests\n\n{UNKNOWN[0].upper()}{UNKNOWN[1:]}."
    lines = [
        [label, str(row.get("said", "")), row.get("error", "")] for label, row in found.items()
    ]
    return f"## GPU tests\n\n{markdown_table(['file', 'outcomes', 'failed'], lines)}"
