"""A block's addition to the embedded time, for one time a video and for one a token."""

from types import SimpleNamespace

import torch

from lightx2v_sgmd.networks.block_modulation import block_modulation


def test_the_block_adds_its_table_to_the_time() -> None:
    table = torch.arange(6.0)[None, :, None].expand(1, 6, 2).bfloat16()
    block = SimpleNamespace(scale_shift_table=table)
    one = block_modulation(block, torch.full((3, 6, 2), 10.0).bfloat16())
    each = block_modulation(block, torch.full((3, 5, 6, 2), 10.0))
    for index, (whole, tokens) in enumerate(zip(one, each, strict=True)):
        assert whole.dtype == tokens.dtype == torch.float32
        assert torch.equal(whole, torch.full((3, 1, 2), 10.0 + index))
        assert torch.equal(tokens, torch.full((3, 5, 2), 10.0 + index))
