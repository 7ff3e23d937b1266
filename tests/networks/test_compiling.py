"""Which kernels a shape gets. The compiler itself is tested with a whole network in tests/infer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lightx2v_sgmd.networks.compiling import compile_blocks


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, tokens: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return tokens @ self.weight + text.mean(1, keepdim=True)


def network(blocks: int = 3) -> Any:
    return SimpleNamespace(blocks=nn.ModuleList(Block() for _ in range(blocks)))


def run(blocks: Any, batch: int, tokens: int, rows: int = 5) -> torch.Tensor:
    x, text = torch.ones(batch, tokens, 4), torch.arange(batch * rows * 4.0).view(batch, rows, 4)
    for block in blocks:
        x = block(x, text)
    return x


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Compiled graphs in their order: "exact", or "flexible" if a length is an argument."""
    found: list[str] = []
    real = torch.compile

    def backend(graph: Any, example: Any) -> Any:
        flexible = any(isinstance(value, torch.SymInt) for value in example)
        found.append("flexible" if flexible else "exact")
        return graph.forward

    def compile_(*args: Any, **kwargs: Any) -> Any:
        return real(*args, **{**kwargs, "backend": backend})

    monkeypatch.setattr(torch, "compile", compile_)
    return found


@torch.no_grad()
def test_the_first_shape_is_exact_and_all_others_share_kernels(graphs: list[str]) -> None:
    plain = network()
    lines: list[Any] = []
    shapes = [(1, 7), *((batch, tokens) for batch in (1, 2, 3, 4) for tokens in range(2, 12))]
    expected = [run(plain.blocks, *shape) for shape in shapes]
    compile_blocks(plain, lines.append)
    for shape, values in zip(shapes, expected, strict=True):
        torch.testing.assert_close(run(plain.blocks, *shape), values)
    assert graphs == ["exact", "flexible", "flexible"]  # the last: more than one video
    assert len(lines) == 1 and lines[0].startswith("compile: a second size")


@torch.no_grad()
def test_one_size_stays_exact(graphs: list[str]) -> None:
    plain = network()
    lines: list[Any] = []
    compile_blocks(plain, lines.append)
    for _ in range(3):
        run(plain.blocks, 1, 7)
    assert graphs == ["exact"] and not lines


@torch.no_grad()
def test_every_network_has_a_count_of_its_own(graphs: list[str]) -> None:
    """TorchDynamo allows eight graphs for one function."""
    for _ in range(12):
        each = network()
        compile_blocks(each, pytest.fail)
        run(each.blocks, 1, 7)
    assert graphs == 12 * ["exact"]


@torch.no_grad()
def test_a_compiler_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = network()
    lines: list[Any] = []
    calls: list[Any] = []
    expected = run(plain.blocks, 1, 7)
    real = torch.compile

    def backend(graph: Any, example: Any) -> Any:
        calls.append(1)
        raise RuntimeError("no room\nfor anything")

    monkeypatch.setattr(torch, "compile", lambda f, **kw: real(f, **{**kw, "backend": backend}))
    compile_blocks(plain, lines.append)
    for _ in range(2):
        torch.testing.assert_close(run(plain.blocks, 1, 7), expected)
    assert len(calls) == 1
    assert len(lines) == 1 and lines[0].startswith("compile: failed (BackendCompilerFailed")
    assert "\n" not in lines[0] and len(lines[0]) < 300


@torch.no_grad()
def test_more_graphs_than_allowed_are_no_error(graphs: list[str]) -> None:
    plain = network()
    lines: list[Any] = []
    shapes = [(batch, 7) for batch in (1, 2, 3)]
    expected = [run(plain.blocks, *shape) for shape in shapes]
    compile_blocks(plain, lines.append)
    with torch._dynamo.config.patch(recompile_limit=1):
        run(plain.blocks, 1, 9)
        for shape, values in zip(shapes, expected, strict=True):
            torch.testing.assert_close(run(plain.blocks, *shape), values)
    assert "FailOnRecompileLimitHit" in lines[-1]


@torch.no_grad()
def test_an_error_of_the_block_itself_comes_through(graphs: list[str]) -> None:
    plain = network()
    compile_blocks(plain, lambda line: None)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        plain.blocks[0](torch.ones(1, 7, 3), torch.ones(1, 5, 4))
