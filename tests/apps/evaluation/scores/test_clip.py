"""The CLIP score with a tiny random CLIPModel, against transformers' own comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lightx2v_sgmd.apps.evaluation import EvaluateOptions, evaluate
from lightx2v_sgmd.apps.evaluation.scores.clip import MEAN, STD, Clip, centre
from lightx2v_sgmd.files.video import write_video
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import prepare_libraries

WORDS = ["<|startoftext|>", "<|endoftext|>", "a", "red", "blue", "circle", "moving"]


def make_clip(folder: Path, image_size: int = 16) -> Path:
    """A CLIPModel as transformers saves it, with a tokenizer of a few words."""
    prepare_libraries()
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "projection_dim": 8}
    text = {**small, "vocab_size": len(WORDS), "max_position_embeddings": 8}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**small, "image_size": image_size, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        for parameter in model.parameters():  # so that pictures and texts differ
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.RobertaProcessing(
        (WORDS[1], 1), (WORDS[0], 0), trim_offsets=False, add_prefix_space=False
    )
    words.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": WORDS[0], "eos_token": WORDS[1], "pad_token": WORDS[1]}
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 8, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "model")


def video(seed: int, frames: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(frames, 16, 16, 3)).astype(np.uint8)


def expected(folder: Path, frames: np.ndarray, ids: list[int]) -> float:
    """By the network's own logits, which are the cosines times the exponential of its scale."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder, trust_remote_code=False).eval()
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), pixel_values=pixels)
        cosines = out.logits_per_image[:, 0] / model.logit_scale.exp()
    return float((100 * cosines).clamp(min=0).mean())


def test_the_score_is_the_mean_of_the_networks_cosines(folder: Path) -> None:
    clip = Clip(folder, "cpu")
    scores = []
    for seed, prompt, ids in (
        (0, "a red circle", [0, 2, 3, 5, 1]),
        (1, "a red circle", [0, 2, 3, 5, 1]),
        (0, "blue moving", [0, 4, 6, 1]),
    ):
        scores.append(clip.score(video(seed), prompt))
        assert scores[-1] == pytest.approx(expected(folder, video(seed), ids), abs=1e-3)
    assert len({round(score, 2) for score in scores}) == 3
    many = np.concatenate([video(0)] * 12)  # more than go through the network at once
    assert clip.score(many, "a red circle") == pytest.approx(scores[0], abs=1e-3)


def test_a_long_prompt_is_cut_and_keeps_its_end(folder: Path) -> None:
    clip = Clip(folder, "cpu")
    cut = [0, 2, 2, 2, 2, 2, 2, 1]
    score = clip.score(video(0), " ".join(["a"] * 50))
    assert score == pytest.approx(expected(folder, video(0), cut), abs=1e-3)


def test_frames_are_prepared_as_clips_code_does() -> None:
    picture = np.random.default_rng(0).integers(256, size=(40, 60, 3)).astype(np.uint8)
    resized = Image.fromarray(picture).resize((24, 16), Image.Resampling.BICUBIC)
    theirs = np.asarray(resized.crop((4, 0, 20, 16)))
    ours = centre(torch.from_numpy(picture).permute(2, 0, 1)[None], 16)[0].permute(1, 2, 0)
    assert ours.shape == (16, 16, 3)
    assert np.abs(ours.numpy() - theirs).max() <= 2


@pytest.mark.slow
def test_an_evaluation_has_the_score_of_each_video_with_its_prompt(
    folder: Path, tmp_path: Path
) -> None:
    for side in ("a", "b"):
        for index in range(2):
            write_video(video(index + (side == "b")), tmp_path / side / f"{index}.mp4", 8)
    (tmp_path / "p.txt").write_text("a red circle\nblue moving\n")
    options = EvaluateOptions(metrics=("clip",), clip=folder, device="cpu")
    sides = (tmp_path / "a", tmp_path / "p.txt", tmp_path / "out")
    results = evaluate(*sides, against=tmp_path / "b", options=options, quiet=True).metrics
    scores = [row["weights"]["clip"] for row in results["videos"]]
    mean = results["sides"]["weights"]["measures"]["clip"]["mean"]
    assert mean == pytest.approx(np.mean(scores)) and scores[0] != scores[1]
    assert "clip" in results["differences"]
    saved = json.loads((tmp_path / "out" / "measured" / "weights_clip.json").read_text())
    assert {key.partition(" ")[2] for key in saved["videos"]} == {"a red circle", "blue moving"}


def test_what_is_no_clip_is_refused_before_anything_is_made(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--clip: .* has no config.json; name the folder"):
        EvaluateOptions(clip=tmp_path / "none")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match="--clip: .*not a CLIPModel"):
        Clip(tmp_path, "cpu")
    (tmp_path / "p.txt").write_text("one\n")
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "0.mp4").touch()
    (tmp_path / "half").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "half" / name).write_bytes((folder / name).read_bytes())
    options = EvaluateOptions(clip=tmp_path / "half")
    with pytest.raises(UserError, match="--clip: .*tokenizer"):
        evaluate(tmp_path / "v", tmp_path / "p.txt", tmp_path / "out", options=options, quiet=True)
    assert not (tmp_path / "out").exists()
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"--clip: .*safetensors"):
        Clip(tmp_path, "cpu")
