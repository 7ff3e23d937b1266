"""Measurements of videos, worked by hand, and what is kept of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lightx2v_sgmd.apps.comparison import measuring
from lightx2v_sgmd.apps.comparison.measuring import measure_videos
from lightx2v_sgmd.apps.sprites import motions, world
from lightx2v_sgmd.apps.sprites.evaluate import held_out_captions, held_out_motion_captions
from lightx2v_sgmd.system.errors import UserError
from tests.measures.test_optical_flow import moving_texture


def sprite_videos(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    videos = [world.sample_video(rng, caption)[2] for caption in held_out_captions(count)]
    return (np.stack(videos) * 255).round().astype(np.uint8)


def motion_videos(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    captions = held_out_motion_captions(count)
    videos = [motions.render(motions.sample_sprite(rng, caption)) for caption in captions]
    return (np.stack(videos) * 255).round().astype(np.uint8)


def test_motions_are_judged_and_survive_the_disk(tmp_path: Path) -> None:
    measured = measure_videos(motion_videos(8, 0), held_out_motion_captions(8), 8, nfe=4)
    measuring.save(measured, tmp_path / "m.json")
    assert measuring.load(tmp_path / "m.json") == measured
    assert measured.verdicts is None and measured.motions is not None
    assert measured.right == [True] * 8 and measured.first(3).right == [True] * 3
    content = json.loads((tmp_path / "m.json").read_text())
    for damaged in (content["motions"][:7], [1] * 8):
        (tmp_path / "m.json").write_text(json.dumps(content | {"motions": damaged}))
        with pytest.raises(UserError, match=r"m\.json: is not as it was written; remove it"):
            measuring.load(tmp_path / "m.json")


def test_measurements_survive_the_disk(tmp_path: Path) -> None:
    captions = held_out_captions(6)
    videos = sprite_videos(6, 0)
    measured = measure_videos(videos, captions, 8, nfe=4, groups=[videos[:3], videos[3:]])
    measuring.save(measured, tmp_path / "deep" / "m.json")
    assert measuring.load(tmp_path / "deep" / "m.json") == measured
    assert measured.verdicts is not None and all(v.all_attributes for v in measured.verdicts)
    assert len(measured.features) == len(measured.flow) == len(measured.dynamic) == 6
    assert len(measured.distances) == 2 and min(measured.distances) > 0
    few = measured.first(2)
    assert few.features == measured.features[:2] and few.verdicts == measured.verdicts[:2]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["m.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"features": []},
        {"features": [["a"]]},
        {"features": [[1.0], [1.0, 2.0]]},
        {"flow": [1.0, 2.0]},
        {"nfe": "4"},
        {"nfe": None},
        {"verdicts": [1]},
        {"verdicts": [{"right": {"a": 1}}]},
        {"evil": 1},
        {"seconds": [1]},
    ],
    ids=str,
)
def test_a_measurement_that_is_not_as_it_was_written_is_named(
    tmp_path: Path, change: dict[str, object]
) -> None:
    good = measuring.Measured(4, [[1.0, 2.0]], [1.0], [True], None, [], 1.0)
    measuring.save(good, tmp_path / "m.json")
    assert measuring.load(tmp_path / "m.json") == good and good.right is None
    content = json.loads((tmp_path / "m.json").read_text()) | change
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"m\.json: is not as it was written; remove it"):
        measuring.load(tmp_path / "m.json")


def test_videos_of_any_kind_have_statistics() -> None:
    slow, fast = (np.stack([moving_texture(dx, 0, seed=s) for s in range(2)]) for dx in (0.5, 2.0))
    one, other = (measure_videos(videos, None, 8, nfe=4) for videos in (slow, fast))
    assert one.verdicts is None and len(one.features[0]) == len(other.features[0]) == 14
    assert np.mean(other.flow) > 3 * np.mean(one.flow)
    assert not any(one.dynamic) and all(other.dynamic)
    assert np.isfinite(one.features).all()


def test_images_have_no_flow() -> None:
    """The statistics of a still video's frame, and distances."""
    video = moving_texture(1.0, 0, seed=1)[None]
    image = video[:, :1]
    measured = measure_videos(image, None, 1, nfe=4, groups=[np.concatenate([image, image])])
    assert measured.flow == measured.dynamic == [] and measured.distances == [0.0]
    still = measure_videos(np.repeat(image, 3, axis=1), None, 8, nfe=4)
    np.testing.assert_allclose(measured.features[0], still.features[0][:8], rtol=1e-4)
    assert len(measured.features[0]) == 8
