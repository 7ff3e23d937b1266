"""Runs one export in one program's own code: the child process of ``client_programs``.

    python tools/checks/client_runs.py PROGRAM CHECKOUT REQUEST.json

It imports the program from its checkout and nothing of this project, so that neither can mend the
other. The request names the weights and the inputs; what the program computes, the latents after
the last step, goes into a safetensors file. All is float32 on a CPU. Patches are the least that a
machine without CUDA needs: attention by PyTorch, and devices that are a CPU.
"""

from __future__ import annotations

import json
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
        self.weights = Path(request["weights"])
        self.lora: Path | None = Path(request["lora"]) if request["lora"] else None
        self.config: dict[str, Any] = request["config"]  # the original's config.json
        self.shift: float = request["shift"]

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
    network = model.WanModel.from_pretrained(str(inputs.weights)).float().eval()

    def velocity(x_t: Tensor, sigma: float) -> Tensor:
        tokens = x_t[0].numel() // 4
        out: Tensor = network([x_t], torch.tensor([1000 * sigma]), [inputs.text], tokens)[0]
        return out

    return inputs.euler(velocity)


def comfyui(inputs: Inputs) -> Tensor:
    """ComfyUI's loader, its shift, its euler sampler and its simple scheduler, LoRA included."""
    sys.argv = ["main.py", "--cpu", "--force-fp32", "--use-pytorch-cross-attention"]
    import_module("comfy.options").enable_args_parsing()
    sd, sample = import_module("comfy.sd"), import_module("comfy.sample")
    utils, sampling = import_module("comfy.utils"), import_module("comfy.model_sampling")
    model = sd.load_diffusion_model(str(inputs.weights))
    if inputs.lora is not None:
        lora = utils.load_torch_file(str(inputs.lora), safe_load=True)
        model, _ = sd.load_lora_for_models(model, None, lora, 1.0, 0.0)

    # What the node ModelSamplingSD3 does; importing it imports every node of the program.
    class Shifted(sampling.ModelSamplingDiscreteFlow, sampling.CONST):  # type: ignore[misc,name-defined]
        pass

    shifted = Shifted(model.model.model_config)
    shifted.set_parameters(shift=inputs.shift, multiplier=1000)
    model = model.clone()
    model.add_object_patch("model_sampling", shifted)
    condition = [[inputs.padded_text, {}]]
    out = sample.sample(
        *(model, inputs.noise[None], inputs.steps, 1.0, "euler", "simple", condition, condition),
        latent_image=torch.zeros_like(inputs.noise[None]),
        disable_pbar=True,
        seed=0,
    )
    latents: Tensor = model.model.process_latent_in(out)[0]
    return latents


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
    network.load_state_dict({k: t.float() for k, t in load_file(inputs.weights).items()})
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
        *(config, "cpu", str(inputs.weights), "torch", False, "cpu", torch.float32), **options
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
    folder = inputs.lora.parent if inputs.lora is not None else _folder(inputs.weights)
    os.chdir(folder)  # the card's command does so, too
    config = json.loads(Path("lightx2v.json").read_text())
    config |= {key: value for key, value in inputs.config.items() if not key.startswith("_")}
    config |= {"model_cls": "wan2.1_distill", "task": "t2v", "model_path": str(inputs.weights)}
    config |= {"modulate_type": "torch", "feature_caching": "NoCaching"}  # Triton needs a GPU
    config |= {"seq_parallel": False, "cfg_parallel": False, "parallel": False}
    if inputs.lora is not None:
        config["dit_original_ckpt"] = str(inputs.weights)
    device = torch.device("cpu")
    made: dict[str, Any] = {"model_path": config["model_path"], "config": config, "device": device}
    if inputs.lora is None:
        network = import_module("lightx2v.models.networks.wan.distill_model").WanDistillModel(
            **made
        )
    else:
        network = import_module("lightx2v.models.networks.wan.model").WanModel(**made)
        adapter = import_module("lightx2v.models.networks.lora_adapter").LoraAdapter(network)
        adapter.apply_lora(config["lora_configs"], model_type="wan2.1")
    network.to_cuda()  # to the "device": weights on a CPU count as offloaded
    schedulers = import_module("lightx2v.models.schedulers.wan.step_distill.scheduler")
    scheduler = schedulers.WanStepDistillScheduler(config)
    network.set_scheduler(scheduler)
    scheduler.prepare(seed=0, latent_shape=list(inputs.noise.shape))
    scheduler.latents = inputs.noise
    text = inputs.padded_text
    given = {"text_encoder_output": {"context": text, "context_null": text}}
    for step in range(inputs.steps):
        scheduler.step_pre(step_index=step)
        network.infer(given)
        scheduler.step_post()
    latents: Tensor = scheduler.latents
    return latents


def _folder(weights: Path) -> Path:
    return weights if weights.is_dir() else weights.parent


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
