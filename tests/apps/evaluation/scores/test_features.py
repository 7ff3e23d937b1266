"""The teacher's features, against the network run in full."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightx2v_sgmd.apps.evaluation.scores.features import TeacherFeatures
from lightx2v_sgmd.families.wan.forward import normalized_latents
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.system.errors import UserError
from tests.tiny import make_tiny_wan


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> TeacherFeatures:
    folder = make_tiny_wan(tmp_path_factory.mktemp("model") / "m", layers=3)
    return TeacherFeatures(open_wan(folder), "cpu", torch.float32)


def some_frames(count: int = 9, size: int = 32) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@torch.no_grad()
def test_they_are_the_middle_blocks_mean_over_tokens(features: TeacherFeatures) -> None:
    frames = some_frames()
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    x0 = normalized_latents(features.vae, features.vae.encode(video).latent_dist.mode())
    noise = torch.randn(1, *x0.shape[1:], generator=torch.Generator().manual_seed(0))
    x_t = 0.75 * x0 + 0.25 * noise
    seen: list[torch.Tensor] = []
    handle = features.network.blocks[1].register_forward_hook(lambda m, a, out: seen.append(out))
    text = features.row.text[None]
    text = torch.nn.functional.pad(text, (0, 0, 0, 512 - text.shape[1]))
    features.network(x_t, torch.tensor([250.0]), text, return_dict=False)
    handle.remove()
    expected = seen[0][0].mean(0).numpy()
    np.testing.assert_allclose(features(frames), expected, rtol=1e-5, atol=1e-6)


def test_frames_beyond_the_last_latent_frame_do_not_count(features: TeacherFeatures) -> None:
    frames = some_frames(11)
    np.testing.assert_array_equal(features(frames), features(frames[:9]))
    assert np.abs(features(frames) - features(frames[:5])).max() > 1e-4


def test_a_size_that_the_model_cannot_take_is_refused(features: TeacherFeatures) -> None:
    with pytest.raises(UserError, match="24 is not divisible"):
        features(some_frames(size=24))
