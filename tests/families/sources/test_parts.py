"""Teachers from every layout: the same model, whatever its files are called."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

from distill import distill
from lightx2v_sgmd.families.sources.hub_configs import known_transformer_config
from lightx2v_sgmd.families.sources.parts import without_private
from lightx2v_sgmd.families.wan import original as wan_original
from lightx2v_sgmd.families.wan.keys import transformer_to_original
from lightx2v_sgmd.families.wan.model import WanModel
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.families.wan.original import TEXT_ENCODER_CONFIG, VAE_CONFIG
from lightx2v_sgmd.files.tensors.safetensors_files import check_keys
from lightx2v_sgmd.system.errors import UserError
from tests.families.original import open_tiny_original, original_config, write_original
from tests.tiny import make_tiny_wan
from tests.training import make_job, read_trace

PROMPTS = ["a red circle moving left", "a blue square"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WanModel:
    return open_wan(make_tiny_wan(tmp_path_factory.mktemp("tiny") / "diffusers"))


@pytest.fixture(scope="module", params=[".pth", ".safetensors"])
def original_folder(
    model: WanModel, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_original(model, tmp_path_factory.mktemp("original") / "wan", request.param)


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[k], theirs[k]) and ours[k].dtype == theirs[k].dtype for k in ours
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loading_equals_stock_libraries(model: WanModel, dtype: torch.dtype) -> None:
    for ours, cls, part in (
        (model.load_transformer(dtype), WanTransformer3DModel, "transformer"),
        (model.load_vae(dtype), AutoencoderKLWan, "vae"),
    ):
        stock = cls.from_pretrained(model.path, subfolder=part, torch_dtype=dtype)
        assert same_weights(ours, stock)
        assert ours.training == stock.training
        buffers = dict(stock.named_buffers())
        assert {k: b.dtype for k, b in ours.named_buffers()} == {
            k: b.dtype for k, b in buffers.items()
        }
        assert all(torch.equal(b, buffers[k]) for k, b in ours.named_buffers())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_text_encoder_equals_stock(model: WanModel, dtype: torch.dtype) -> None:
    ours = model.load_text_encoder(dtype)
    stock = UMT5EncoderModel.from_pretrained(model.path, subfolder="text_encoder", dtype=dtype)
    ids, mask = ours.tokenize(PROMPTS)
    with torch.no_grad():  # with gradients attention takes another kernel
        hidden, _ = ours.forward(PROMPTS)
        expected = stock.eval()(ids, mask).last_hidden_state
    assert torch.equal(hidden, expected)
    assert not any(p.requires_grad for p in ours.network.parameters())


def test_an_original_folder_is_the_same_model(model: WanModel, original_folder: Path) -> None:
    opened = open_tiny_original(original_folder, model)
    assert {
        key: value
        for key, value in opened.transformer_config.items()
        if key not in ("patch_size", "rope_max_seq_len")
    }.items() <= model.transformer_config.items()
    assert same_weights(opened.load_transformer(), model.load_transformer())
    assert same_weights(opened.load_vae(), model.load_vae())
    text = zip(
        opened.load_text_encoder(torch.float32).rows(PROMPTS),
        model.load_text_encoder(torch.float32).rows(PROMPTS),
        strict=True,
    )
    assert all(torch.equal(ours, theirs) for ours, theirs in text)


def test_slices_come_under_diffusers_names(model: WanModel, original_folder: Path) -> None:
    reader = open_wan(original_folder).transformer_weights()
    state = model.load_transformer().state_dict()
    check_keys(reader.header, {name: tuple(t.shape) for name, t in state.items()}, "net")
    for name, tensor in state.items():
        flat = tensor.flatten()
        third = flat.numel() // 3
        assert torch.equal(reader.tensor(name), tensor)
        assert torch.equal(reader.read(name, third, 2 * third + 1), flat[third : 2 * third + 1])


def test_several_shards_in_either_format(model: WanModel, tmp_path: Path) -> None:
    state = {
        transformer_to_original(k): t for k, t in model.load_transformer().state_dict().items()
    }
    names = sorted(state)
    for suffix in (".pth", ".safetensors"):
        folder = tmp_path / suffix[1:]
        folder.mkdir()
        config = original_config(model.transformer_config)
        (folder / "config.json").write_text(json.dumps(config))
        for index, chosen in enumerate((names[::2], names[1::2]), start=1):
            file = folder / f"diffusion_pytorch_model-{index:05d}-of-00002{suffix}"
            part = {name: state[name] for name in chosen}
            torch.save(part, file) if suffix == ".pth" else save_file(part, file)
        assert same_weights(open_wan(folder).load_transformer(), model.load_transformer())
        shutil.copy(file, folder / f"diffusion_pytorch_model-copy{suffix}")
        with pytest.raises(UserError, match="is also in diffusion_pytorch_model"):
            open_wan(folder).load_transformer()


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
@pytest.mark.parametrize("naming", ["diffusers", "original"])
def test_a_single_file_takes_the_rest_from_its_base(
    model: WanModel, tmp_path: Path, prefix: str, naming: str
) -> None:
    network = model.load_transformer()
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1
    rename = transformer_to_original if naming == "original" else str
    tensors = {prefix + rename(k): t for k, t in network.state_dict().items()}
    file = tmp_path / "finetune.safetensors"
    save_file(tensors, file)
    opened = open_wan(file, base=model.path)
    assert opened.path == str(file)
    assert same_weights(opened.load_transformer(), network)
    assert same_weights(opened.load_vae(), model.load_vae())
    with pytest.raises(UserError, match=r"teacher.path: .*finetune.*; set teacher.base to"):
        open_wan(file)


def test_a_single_file_in_its_models_folder_needs_no_base(
    model: WanModel, original_folder: Path
) -> None:
    file = next(original_folder.glob("diffusion_pytorch_model.*"))
    assert same_weights(open_wan(file).load_transformer(), model.load_transformer())
    with pytest.raises(UserError, match="is not a file of weights; leave out teacher.base"):
        open_wan(original_folder, base=model.path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("head.head.bias"), r"1 missing: proj_out.bias \[16\]"),
        (
            lambda state: state.update({"blocks.0.self_attn.q.lora": torch.zeros(3)}),
            r"1 unexpected: blocks.0.self_attn.q.lora \[3\]",
        ),
        (
            lambda state: state.update({"head.head.bias": torch.zeros(3)}),
            r"1 of the wrong shape: proj_out.bias \[3\] for \[16\]",
        ),
        (
            lambda state: state.update({"head.head.bias": torch.zeros(16, dtype=torch.int8)}),
            "proj_out.bias is stored as I8",
        ),
        (
            lambda state: state.update({"diffusion_model.x": torch.zeros(1)}),
            "1 unexpected: diffusion_model.x",
        ),
    ],
)
def test_what_does_not_fit_is_reported(
    model: WanModel, tmp_path: Path, change: Any, says: str
) -> None:
    state = {
        transformer_to_original(k): t for k, t in model.load_transformer().state_dict().items()
    }
    change(state)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match=says):
        open_wan(tmp_path / "x.pth", base=model.path).load_transformer()


def test_another_base_does_not_fit(model: WanModel, tmp_path: Path) -> None:
    save_file(model.load_transformer().state_dict(), tmp_path / "x.safetensors")
    other = make_tiny_wan(tmp_path / "deeper", layers=3)
    with pytest.raises(UserError, match=r"27 missing: blocks\.2\..*, \.\.\."):
        open_wan(tmp_path / "x.safetensors", base=other).load_transformer()


def test_the_release_on_the_hub_is_known_without_a_network() -> None:
    for size in ("1.3B", "14B"):
        opened = open_wan(f"Wan-AI/Wan2.1-T2V-{size}")
        assert opened.source.layout == "original"
        config = known_transformer_config(f"Wan-AI/Wan2.1-T2V-{size}-Diffusers")
        assert opened.transformer_config == config
        assert opened.latent_shape(480, 832, 81) == (16, 21, 60, 104)


def test_the_parts_that_the_release_does_not_describe() -> None:
    with torch.device("meta"):
        vae = AutoencoderKLWan.from_config(dict(VAE_CONFIG))
        stock = AutoencoderKLWan()
    described, defaults = without_private(dict(vae.config)), without_private(dict(stock.config))
    assert described == defaults
    assert TEXT_ENCODER_CONFIG["vocab_size"] == 256384  # test_keymaps has every shape's name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "i2v"}, "config.json: has model_type 'i2v'; this model takes an image"),
        (
            {"model_type": "i2v", "in_dim": 12},
            "config.json: takes 12 channels and gives 4; this model takes an image",
        ),
        ({"model_type": "ti2v"}, "has model_type 'ti2v'; this model takes an image"),
        ({"model_type": "vace"}, "has model_type 'vace'; use a model of the type 't2v' or 'i2v'"),
        ({"in_dim": 36}, "takes 36 channels and gives 4"),
        ({"dim": 50}, "has 4 heads for a width of 50"),
        ({"num_heads": 0}, "has 0 heads"),
        ({"num_layers": 10**9}, "num_layers is 1000000000, not a whole number from 1 to 256"),
        ({"num_layers": "2"}, "num_layers is '2'"),
        ({"ffn_dim": None}, "ffn_dim is None"),
        ({"patch_size": "122"}, "patch_size is '122'"),
        ({"add_ref_conv": True}, "has the unknown key 'add_ref_conv'"),
        ({"_class_name": "FluxModel"}, "describes a FluxModel, not .*CogVideoX, SD3 or SDXL; give"),
    ],
)
def test_configurations_that_are_not_wans(
    model: WanModel, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    config = {**original_config(model.transformer_config), **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"teacher.path: .*{says}"):
        open_wan(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, '{"_class_name": "\\ud800'])
def test_configurations_that_are_no_objects(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json: is not (a |readable )?JSON"):
        open_wan(tmp_path)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_folders_with_a_part_missing(model: WanModel, tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "wan"
    if layout == "diffusers":
        shutil.copytree(model.path, folder)
        removed = ("vae/diffusion_pytorch_model.safetensors", "tokenizer")
    else:
        write_original(model, folder, ".safetensors")
        removed = ("Wan2.1_VAE.safetensors", "google")
    for name in removed:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    opened = open_wan(folder)
    opened.load_transformer()
    with pytest.raises(UserError, match=r"is missing|has no Wan2.1_VAE"):
        opened.load_vae()
    with pytest.raises(UserError, match="is missing"):
        opened.load_text_encoder(torch.float32)


@pytest.mark.parametrize(
    "link",
    ["vae", "vae/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json", "tokenizer/key"],
)
def test_links_out_of_a_folder_are_refused(model: WanModel, tmp_path: Path, link: str) -> None:
    folder = tmp_path / "wan"
    shutil.copytree(model.path, folder)
    path, elsewhere = folder / link, tmp_path / "elsewhere"
    if path.exists():
        shutil.move(path, elsewhere)
    else:
        elsewhere.write_text("secret")
    path.symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{link}.*: is a link out of .*, which is refused"):
        open_wan(folder)
    path.unlink()
    shutil.move(elsewhere, folder / "kept")
    path.symlink_to(os.path.relpath(folder / "kept", path.parent))
    open_wan(folder)  # a link within the folder is fine


def test_links_of_an_original_folder_are_looked_at(model: WanModel, tmp_path: Path) -> None:
    folder = write_original(model, tmp_path / "wan", ".safetensors")
    shutil.move(folder / "Wan2.1_VAE.safetensors", tmp_path / "vae.safetensors")
    (folder / "Wan2.1_VAE.safetensors").symlink_to(tmp_path / "vae.safetensors")
    with pytest.raises(UserError, match="Wan2.1_VAE.safetensors: is a link out of"):
        open_wan(folder)
    (folder / "Wan2.1_VAE.safetensors").unlink()
    (folder / "Wan2.1_VAE.safetensors").symlink_to("Wan2.1_VAE.safetensors")
    with pytest.raises(UserError, match="is a link that leads nowhere|is a link out of"):
        open_wan(folder)


def test_the_hubs_own_cache_is_made_of_links(model: WanModel, tmp_path: Path) -> None:
    """As ``snapshot_download`` lays it out."""
    cache = tmp_path / "models--Wan-AI--x"
    snapshot = cache / "snapshots" / "0123abcd"
    shutil.copytree(model.path, snapshot)
    (cache / "blobs").mkdir()
    for index, file in enumerate(path for path in snapshot.rglob("*") if path.is_file()):
        shutil.move(file, cache / "blobs" / str(index))
        file.symlink_to(os.path.relpath(cache / "blobs" / str(index), file.parent))
    opened = open_wan(snapshot)
    assert same_weights(opened.load_transformer(), model.load_transformer())
    opened.load_text_encoder(torch.float32)


def test_an_embedding_under_either_name(model: WanModel, tmp_path: Path) -> None:
    folder = tmp_path / "wan"
    shutil.copytree(model.path, folder)
    file = folder / "text_encoder" / "model.safetensors"
    state = load_file(file)
    expected = model.load_text_encoder(torch.float32).rows(PROMPTS)
    embedding = state.get("encoder.embed_tokens.weight", state["shared.weight"])
    for names in (["shared.weight"], ["encoder.embed_tokens.weight"]):
        rest = {k: t for k, t in state.items() if "embed_tokens" not in k and "shared" not in k}
        save_file(rest | {name: embedding for name in names}, file)
        got = open_wan(folder).load_text_encoder(torch.float32).rows(PROMPTS)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.slow
def test_distilling_either_layout_is_the_same_run(
    model: WanModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = write_original(model, tmp_path / "released", ".pth")
    # The release has one VAE and one text encoder, which are not this small.
    monkeypatch.setattr(wan_original, "VAE_CONFIG", model.vae_config)
    monkeypatch.setattr(wan_original, "TEXT_ENCODER_CONFIG", model.full_text_encoder_config())
    traces, students = [], []
    for name, teacher in (("ours", Path(model.path)), ("theirs", released)):
        job = make_job(teacher, tmp_path / name, "train.iterations=1", "train.sample_every=1")
        run = distill(job, quiet=True)
        assert list((run / "samples").rglob("*.mp4"))
        traces.append(read_trace(run))
        students.append(load_file(run / "checkpoints" / "step_000001" / "student.safetensors"))
    assert traces[0] == traces[1] and len(traces[0]) == 1
    assert students[0].keys() == students[1].keys()
    assert all(torch.equal(tensor, students[1][name]) for name, tensor in students[0].items())
