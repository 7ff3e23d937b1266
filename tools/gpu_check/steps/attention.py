"""Every attention kernel at the network's own shapes: how exact, how fast."""

from __future__ import annotations

import torch
from torch import Tensor

from lightx2v_sgmd.families.text_rows import TEXT_LENGTH
from lightx2v_sgmd.networks import attention as kernels
from tools.gpu_check.context import Context, relative_difference
from tools.gpu_check.report import NotHere, Row, Step

# S tokens, N heads, D head size

CHECKED_ROWS = 257
CHECKED_HEADS = 2


def run(context: Context, step: Step) -> None:
    """A row for each kernel that is known, with the reason if it is not here."""
    for kernel in kernels.kernels(context.device, context.dtype, context.head_dim):

        def measure(row: Row, kernel: kernels.AttentionKernel = kernel) -> None:
            if not kernel.available:
                raise NotHere(kernel.reason)
            row["kernel"] = kernel.reason
            one_kernel(context, kernel.name, row)

        step.row(kernel.name, 5, measure)


def one_kernel(context: Context, name: str, row: Row) -> None:
    """The video's tokens to themselves and to the text's rows."""
    length = context.tokens
    heads = context.model.num_heads
    generator = torch.Generator(context.device).manual_seed(0)
    for label, keys in (("self", length), ("text", TEXT_LENGTH)):
        q, k, v = (
            torch.randn(
                (1, count, heads, context.head_dim),
                device=context.device,
                dtype=context.dtype,
                generator=generator,
            )
            for count in (length, keys, keys)
        )
        with torch.no_grad():
            found = kernels.attend(name, q, k, v)
            seconds = context.seconds(lambda: kernels.attend(name, q, k, v), 5)  # noqa: B023
        operations = 4 * length * keys * heads * context.head_dim
        row[label] = {
            "ms": seconds * 1e3,
            "tflops": operations / seconds / 1e12,
            "relative_error": sampled_error(found, q, k, v),
        }
    row["tflops"] = row["self"]["tflops"]
    row["relative_error"] = max(row["self"]["relative_error"], row["text"]["relative_error"])


def sampled_error(found: Tensor, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Relative error to float64 on rows from first to last, the ragged last tile included."""
    count = min(q.shape[1], CHECKED_ROWS)
    rows = torch.linspace(0, q.shape[1] - 1, count).round().long().to(q.device)
    few = [x[:, :, :CHECKED_HEADS].double().transpose(1, 2) for x in (q[:, rows], k, v)]
    weights = (few[0] @ few[1].transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
    expected = (weights @ few[2]).transpose(1, 2)
    return relative_difference(found[:, rows, :CHECKED_HEADS], expected)
