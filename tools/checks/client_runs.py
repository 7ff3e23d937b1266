"""Runs one export in one program's own code: the child process of ``client_programs``.

    python tools/checks/client_runs.py PROGRAM CHECKOUT REQUEST.json

It imports the program from its checkout and nothing of this project, so that neither can mend the
other. The request names the weights and the inputs; what the program computes, the latents after
the last step, goes into a safetensors file. All is float32 on a CPU. Patches are the least that a
machine without CUDA needs: attention by PyTorch, and devices that are a CPU.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import types
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Final
from unittest.mock import MagicMock

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

# B batch, C channels, T latent frames, H, W; S text tokens, D text width


class Inputs:
    """The request of the parent, read."""

    def __init__(self, request: dict[str, Any]) -> None:
        tensors = load_file(request["inputs"])
        self.noise: Tensor = tensors["noise"]  # [C, T, H, W]
        self.text: Tensor = tensors["text"]  # [S, D]
        self.sigmas: list[float] = tensors["sigmas"].tolist()
        self.image_rows: Tensor | None = tensors.get("image_rows")  # [L, D']
        self.image = Path(request["image"])  # PNG of the video's size
        self.vae = Path(request["vae"])  # diffusers' folder
        # One of each, or one for each of two experts, high noise first.
        self.weights = [Path(file) for file in request["weights"]]
        self.loras = [Path(file) for file in request["loras"]]
        self.settings = Path(request["settings"])  # the export that says how it is run
        self.workflow: dict[str, Any] = request["workflow"] or {}
        self.config: dict[str, Any] = request["config"]  # the original's config.json
        self.shift: float = request["shift"]

    @property
    def lora(self) -> Path | None:
        """The file of adapters for one network, if any."""
        return self.loras[0] if self.loras else None

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.sigmas) - 1

    @property
    def padded_text(self) -> Tensor:
        """The text as programs' own encoders give it: ``[1, 512, D]``, zeros behind the prompt."""
        padded = torch.zeros(1, 512, self.text.shape[1])
        padded[0, : len(self.text)] = self.text
        return padded

    @property
    def pixels(self) -> Tensor:
        """The image ``[H, W, 3]``, from 0 to 1."""
        import numpy as np
        from PIL import Image

        return torch.from_numpy(np.array(Image.open(self.image))).float() / 255

    def encoded(self, pixels: Tensor) -> Tensor:
        """The VAE's latents ``[1, C, T, h, w]`` of a video ``[1, 3, F, H, W]`` from -1 to 1.

        They are not normalised yet.
        """
        from diffusers import AutoencoderKLWan

        vae = AutoencoderKLWan.from_pretrained(str(self.vae))
        latents: Tensor = vae.encode(pixels).latent_dist.mode()
        return latents

    def normalized(self, latents: Tensor) -> Tensor:
        """The same latents as networks see them."""
        config = json.loads((self.vae / "config.json").read_text())
        mean, std = (
            torch.tensor(config[f"latents_{name}"]).view(1, -1, 1, 1, 1) for name in ("mean", "std")
        )
        return (latents - mean) / std

    def euler(self, velocity: Callable[[Tensor, float], Tensor]) -> Tensor:
        """Euler's method for a program that has none of its own."""
        x_t = self.noise
        for sigma, following in zip(self.sigmas, self.sigmas[1:], strict=False):
            x_t = x_t + (following - sigma) * velocity(x_t, sigma)
        return x_t


def _stub(*names: str) -> None:
    """Puts empty modules in the place of packages that a text-to-video network does not use."""

    class Finder:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            if name.partition(".")[0] not in names:
                return None
            return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

        def create_module(self, spec: ModuleSpec) -> types.ModuleType:
            module = MagicMock(name=spec.name)
            module.__spec__ = spec
            module.__path__ = []
            module.__name__ = spec.name
            return module

        def exec_module(self, module: types.ModuleType) -> None:
            pass

    sys.meta_path.insert(0, Finder())


def _sdpa(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Attention on ``[B, S, N, D]`` in place of flash attention, which needs a GPU."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def wan(inputs: Inputs) -> Tensor:
    """Wan2.1's own network; its repository has no Euler sampler."""
    attention = import_module("wan.modules.attention")
    model = import_module("wan.modules.model")
    for module in (attention, model):
        vars(module)["flash_attention"] = _sdpa
    network = model.WanModel.from_pretrained(str(inputs.weights[0])).float().eval()

    def velocity(x_t: Tensor, sigma: float) -> Tensor:
        tokens = x_t[0].numel() // 4
        out: Tensor = network([x_t], torch.tensor([1000 * sigma]), [inputs.text], tokens)[0]
        return out

    return inputs.euler(velocity)


def comfyui(inputs: Inputs) -> Tensor:
    """The exported workflow in ComfyUI's own nodes, up to the latents that its VAE would decode.

    The nodes that load and run the text encoder, CLIP and the VAE are stand-ins, because those
    networks have one size there; the VAE in their place is the teacher's. What the loaders of
    networks and adapters do not take is an error.
    """
    sys.argv = ["main.py", "--cpu", "--force-fp32", "--use-pytorch-cross-attention"]
    import_module("comfy.options").enable_args_parsing()
    said = _Said()
    logging.getLogger().addHandler(said)
    modules = [import_module("nodes")]
    modules += [import_module(f"comfy_extras.nodes_{n}") for n in ("model_advanced", "wan")]
    modules.append(import_module("comfy_extras.nodes_hunyuan"))
    kinds: dict[str, Any] = {}
    for module in modules:
        kinds |= vars(module) | getattr(module, "NODE_CLASS_MAPPINGS", {})
    graph = inputs.workflow
    loaders = {"UNETLoader": inputs.weights, "LoraLoaderModelOnly": inputs.loras}
    files = {}
    for kind, found in loaders.items():
        named = [node for node in graph.values() if node["class_type"] == kind]
        for node, file in zip(named, found, strict=True):  # high noise first, as the files are
            files[node["inputs"]["unet_name" if kind == "UNETLoader" else "lora_name"]] = str(file)
    vars(import_module("folder_paths"))["get_full_path_or_raise"] = lambda _, name: files[name]
    made: dict[str, Any] = {}
    rows = types.SimpleNamespace(
        penultimate_hidden_states=None if inputs.image_rows is None else inputs.image_rows[None]
    )
    vae = types.SimpleNamespace(
        encode=lambda frames: inputs.encoded(2 * frames.permute(3, 0, 1, 2)[None] - 1)
    )
    given: dict[str, Callable[[], tuple[Any, ...]]] = {
        "CLIPLoader": lambda: (None,),
        "CLIPTextEncode": lambda: ([[inputs.padded_text, {}]],),
        "VAELoader": lambda: (vae,),
        "LoadImage": lambda: (inputs.pixels[None], None),
        "CLIPVisionLoader": lambda: (None,),
        "CLIPVisionEncode": lambda: (rows,),
    }

    def run(key: str) -> Any:
        if key not in made:
            node = graph[key]
            kind, values = node["class_type"], dict(node["inputs"])
            if kind in given:
                made[key] = given[kind]()
            else:
                for name, value in values.items():
                    if isinstance(value, list):
                        values[name] = run(value[0])[value[1]]
                node_class = kinds[kind]
                newer = hasattr(node_class, "define_schema")
                call = node_class.execute if newer else getattr(node_class(), node_class.FUNCTION)
                out = call(**values)
                made[key] = getattr(out, "args", out)
        return made[key]

    (last,) = [node for node in graph.values() if node["class_type"] == "VAEDecode"]
    key, output = last["inputs"]["samples"]
    latents: Tensor = run(key)[output]["samples"]
    if said.lines:
        raise RuntimeError(f"ComfyUI says: {said.lines[0][:100]}")
    return inputs.normalized(latents)[0]


class _Said(logging.Handler):
    """Keeps what a program says of weights that it does not have, or does not know."""

    _OTHERS_KEY = ".diff_m"  # of LightX2V, beside the key that ComfyUI takes

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        words = ("missing", "unexpected", "left over", "not loaded", "NOT MERGED")
        if any(word in line for word in words) and not line.endswith(self._OTHERS_KEY):
            self.lines.append(line)


def diffsynth(inputs: Inputs) -> Tensor:
    """DiffSynth-Studio's network, scheduler and LoRA loader."""
    dit = import_module("diffsynth.models.wan_video_dit")
    keys = ("dim", "in_dim", "ffn_dim", "out_dim", "freq_dim", "eps", "num_heads", "num_layers")
    network = dit.WanModel(
        **{key: inputs.config[key] for key in keys},
        text_dim=4096,
        patch_size=(1, 2, 2),
        has_image_input=False,
    )
    network.load_state_dict({k: t.float() for k, t in load_file(inputs.weights[0]).items()})
    if inputs.lora is not None:
        general = import_module("diffsynth.utils.lora.general")
        general.GeneralLoRALoader().fuse_lora_to_base_model(network, load_file(inputs.lora))
    flow = import_module("diffsynth.diffusion.flow_match")
    scheduler = flow.FlowMatchScheduler("Wan")
    scheduler.set_timesteps(inputs.steps, shift=inputs.shift)
    predict = import_module("diffsynth.pipelines.wan_video").model_fn_wan_video
    text = inputs.padded_text
    latents = inputs.noise[None]
    for timestep in scheduler.timesteps:
        velocity = predict(dit=network, latents=latents, timestep=timestep[None], context=text)
        latents = scheduler.step(velocity, timestep, latents)
    return latents[0]


def musubi(inputs: Inputs) -> Tensor:
    """musubi-tuner's loader, with the LoRA that its own convert_lora made."""
    sys.path.insert(0, str(Path(sys.path[0]) / "src"))
    model = import_module("musubi_tuner.wan.modules.model")
    config = types.SimpleNamespace(i2v=False, flf2v=False, v2_2=False, text_len=512)
    for key, value in inputs.config.items():
        setattr(config, key, value)
    options: dict[str, Any] = {}
    if inputs.lora is not None:
        converted = inputs.lora.parent / "converted.safetensors"
        convert = import_module("musubi_tuner.convert_lora").convert
        convert(str(inputs.lora), str(converted), "default", None)
        options = {"lora_weights_list": [load_file(converted)], "lora_multipliers": [1.0]}
    network = model.load_wan_model(
        *(config, "cpu", str(inputs.weights[0]), "torch", False, "cpu", torch.float32), **options
    )
    network.eval().requires_grad_(False)

    def velocity(x_t: Tensor, sigma: float) -> Tensor:
        tokens = x_t[0].numel() // 4
        out: Tensor = network([x_t], torch.tensor([1000 * sigma]), [inputs.text], tokens)[0]
        return out

    return inputs.euler(velocity)


def lightx2v(inputs: Inputs) -> Tensor:
    """LightX2V's network and its scheduler for few steps, as ``lightx2v.json`` sets them.

    Its text encoder, VAE and command line are left out: they load the teacher's 17 GB.
    """
    os.environ.update(PLATFORM="cpu", DTYPE="BF16", SKIP_PLATFORM_CHECK="1")
    # Its package imports the runners of all models, with all that they import; a bare one does not.
    package = types.ModuleType("lightx2v")
    package.__path__ = [str(Path(sys.path[0]) / "lightx2v")]
    sys.modules["lightx2v"] = package
    registry = import_module("lightx2v_platform.registry_factory")
    cpu = types.SimpleNamespace(
        name="cpu",
        init_device_env=lambda: None,
        is_available=lambda: True,
        get_device=lambda: "cpu",
    )
    registry.PLATFORM_DEVICE_REGISTER["cpu"] = cpu
    import_module("lightx2v_platform.set_ai_device")
    torch.Tensor.pin_memory = lambda self, *args: self  # type: ignore[method-assign]
    empty = torch.empty
    torch.empty = lambda *a, pin_memory=False, **k: empty(*a, **k)
    envs = import_module("lightx2v.utils.envs")
    vars(envs).update(dict.fromkeys(("GET_DTYPE", "GET_SENSITIVE_DTYPE"), lambda: torch.float32))
    import_module("lightx2v.common.ops")
    os.chdir(inputs.settings)  # the card's command does so, too
    config = json.loads(Path("lightx2v.json").read_text())
    config |= {key: value for key, value in inputs.config.items() if not key.startswith("_")}
    pair, image = len(inputs.weights) > 1, inputs.config["model_type"] == "i2v"
    config |= {
        "model_cls": "wan2.2_moe_distill" if pair else "wan2.1_distill",
        "task": inputs.config["model_type"],
        "model_path": str(inputs.weights[0].parent),
    }
    # What its command line sets for every Wan; Triton needs a GPU.
    config |= {"vae_stride": [4, 8, 8], "patch_size": [1, 2, 2], "num_channels_latents": 16}
    config |= {"modulate_type": "torch", "feature_caching": "NoCaching"}
    config |= {"seq_parallel": False, "cfg_parallel": False, "parallel": False}
    if inputs.loras:
        for file, name in zip(inputs.weights, _ORIGINAL if pair else ("dit",), strict=True):
            config[f"{name}_original_ckpt"] = str(file)
    runners = import_module("lightx2v.models.runners.wan.wan_distill_runner")
    kind = runners.Wan22MoeDistillRunner if pair else runners.WanDistillRunner
    runner = object.__new__(kind)  # its constructor loads nothing, but asks for a GPU
    runner.config, runner.init_device = config, torch.device("cpu")
    if pair:
        for name in _ORIGINAL:
            setattr(runner, f"{name}_model_path", config[f"{name}_original_ckpt"])
    network = runner.load_transformer()
    for each in network.model if pair else [network]:
        each.to_cuda()  # to the "device": weights on a CPU count as offloaded
    runner.init_scheduler()
    scheduler = runner.scheduler
    network.set_scheduler(scheduler)
    scheduler.prepare(seed=0, latent_shape=list(inputs.noise.shape))
    scheduler.latents = inputs.noise
    text = inputs.padded_text
    given: dict[str, Any] = {"text_encoder_output": {"context": text, "context_null": text}}
    if image:
        runner.vae_encoder = types.SimpleNamespace(
            dtype=torch.float32,
            encode=lambda video, **_: inputs.normalized(inputs.encoded(video))[0],
        )
        frame = 2 * inputs.pixels.permute(2, 0, 1)[None] - 1
        latents_of_image, shape = runner.run_vae_encoder(frame)
        assert list(shape) == list(inputs.noise.shape), f"{shape}: another size of video"
        told = {"clip_encoder_out": inputs.image_rows, "vae_encoder_out": latents_of_image}
        given["image_encoder_output"] = told
    for step in range(inputs.steps):
        scheduler.step_pre(step_index=step)
        network.infer(given)
        scheduler.step_post()
    latents: Tensor = scheduler.latents
    return latents


_ORIGINAL: Final = ("high_noise", "low_noise")
"""LightX2V's names of two experts."""

PROGRAMS: Final[dict[str, tuple[Callable[[Inputs], Tensor], tuple[str, ...]]]] = {
    "wan": (wan, ("dashscope", "torchvision")),
    "comfyui": (comfyui, ("torchvision", "torchaudio", "kornia")),
    "diffsynth": (diffsynth, ("torchvision", "torchaudio", "modelscope")),
    "musubi": (musubi, ("torchvision",)),
    "lightx2v": (lightx2v, ("torchvision", "torchaudio", "decord", "prometheus_client")),
}
"""A program's run, and the packages that its network does not need but its imports do."""


def main(name: str, checkout: str, request: str) -> None:
    """Runs a program and writes its latents."""
    run, unused = PROGRAMS[name]
    read = json.loads(Path(request).read_text())
    # Once imported, transformers knows that torchvision is absent, and needs no version of a stub.
    import_module("transformers.models.auto.image_processing_auto")
    sys.path.insert(0, checkout)
    _stub(*unused)
    # Some take it as a default argument, on import.
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment,return-value]
    with torch.no_grad():
        latents = run(Inputs(read))
    save_file({"latents": latents.float().contiguous()}, read["out"])


if __name__ == "__main__":
    main(*sys.argv[1:])
