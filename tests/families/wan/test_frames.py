"""Some frames of a video against a whole decode: the frames, their gradient, what is run."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from lightx2v_sgmd.families.wan import frames as wan_frames
from lightx2v_sgmd.families.wan.frames import decode_frames, frame_window


@pytest.fixture(scope="module")
def vae() -> Any:
    """A random VAE of Wan2.1's shape: two temporal upsamplings, then a spatial one."""
    torch.manual_seed(0)
    network = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[False, True, True],
    )
    for p in network.parameters():
        p.data *= 1.5  # so that what is far back in time is seen
    for module in network.modules():
        if isinstance(module, nn.Upsample):  # diffusers' goes through float32
            module.forward = partial(nn.Upsample.forward, module)  # type: ignore[method-assign]
    return network.eval().requires_grad_(False).double()


def whole(vae: Any, latents: Tensor, frames: list[int]) -> Tensor:
    video: Tensor = vae.decode(latents, return_dict=False)[0]
    return video[:, :, frames].transpose(1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("frames", [[0], [3], [0, 1, 4, 5], [20, 40], [17, 31, 39, 40]])
def test_frames_and_gradient_are_those_of_a_whole_decode(vae: Any, frames: list[int]) -> None:
    source = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 11, 4, 6, generator=source, dtype=torch.float64)
    found: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for results, decode in ((found, decode_frames), (expected, whole)):
        leaf = latents.clone().requires_grad_()
        results["frames"] = decode(vae, leaf, frames)
        weights = torch.randn(results["frames"].shape, generator=torch.Generator().manual_seed(2))
        (results["gradient"],) = torch.autograd.grad((results["frames"] * weights).sum(), leaf)
    assert expected["gradient"].abs().max() > 0
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(decode_frames(vae, latents, frames), expected["frames"])


def test_windows_are_as_long_as_they_must_be(vae: Any) -> None:
    """Two residual blocks of four frames' look-back on each of two scales, and a convolution's."""
    assert frame_window(vae, [40]) == (1 + 2 * 2 * 4 + 2, 11)
    assert frame_window(vae, [0]) == (19, 1)
    assert frame_window(vae, [1, 4]) == (19, 2) and frame_window(vae, [5]) == (19, 3)
    source = torch.Generator().manual_seed(3)
    x = torch.randn(1, 8, 25, 8, 12, generator=source, dtype=torch.float64)
    _, late = wan_frames._parts(vae)
    frame = wan_frames._last_frame(late, x)
    for first, same in ((6, True), (7, False)):  # the window's last frames: 19 and 18 of 25
        assert torch.allclose(wan_frames._last_frame(late, x[:, :, first:]), frame) == same


def test_only_what_frames_need_is_run(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    convolution = vae.decoder.conv_out
    hook = convolution.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[2]))
    latents = torch.zeros(1, 4, 11, 4, 6, dtype=torch.float64)
    seen: list[int] = []
    early = vae.decoder.conv_in.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[2])
    )
    with torch.no_grad():
        decode_frames(vae, latents, [0, 9])
    hook.remove()
    early.remove()
    assert lengths == [1, 3] and seen == [4]  # frame 9 is the first of the fourth latent's


def test_layers_run_again_in_the_backward_pass(vae: Any) -> None:
    runs: list[int] = []
    hook = vae.decoder.conv_out.register_forward_pre_hook(lambda _, args: runs.append(1))
    latents = torch.zeros(1, 4, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    frames = decode_frames(vae, latents, [8])
    assert len(runs) == 1
    frames.sum().backward()
    hook.remove()
    assert len(runs) > 1


def test_another_decoder_is_run_whole() -> None:
    """Wan2.2's, with residual blocks around its upsampling and patches of pixels."""
    torch.manual_seed(0)
    network: Any = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
    )
    vae = network.eval().requires_grad_(False)
    latents = torch.randn(1, 4, 3, 4, 4, requires_grad=True)
    found = decode_frames(vae, latents, [0, 5])
    torch.testing.assert_close(found, whole(vae, latents, [0, 5]))
    found.sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0
