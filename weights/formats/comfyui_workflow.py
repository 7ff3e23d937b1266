"""ComfyUI workflows: which nodes, with which settings, wired how.

``workflow`` gives the form that ComfyUI's HTTP API takes; ``to_ui`` the one that its editor opens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from lightx2v_sgmd.files.manifest import Manifest

WORKFLOW_API_FILE: Final = "workflow_api.json"
WORKFLOW_FILE: Final = "workflow.json"
TEXT_ENCODER: Final = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VAE: Final = "wan_2.1_vae.safetensors"
CLIP: Final = "clip_vision_h.safetensors"
"""The names under which Comfy-Org publishes Wan2.1's text encoder, VAE and image encoder."""

StartImage = Literal["none", "latents", "latents and clip"]
"""The way in which a network sees the image that a video starts from."""

IMAGE: Final = "example.png"
"""The image that ComfyUI has in its folder ``input``."""
PROMPT: Final = "A cat walks on the grass, realistic style."

# Inputs that are wires and their types, inputs that are set in the node in the editor's order, and
# the types of the outputs. The editor adds a setting of its own after a seed.
_NODES: Final[Mapping[str, tuple[Mapping[str, str], tuple[str, ...], tuple[str, ...]]]] = {
    "UNETLoader": ({}, ("unet_name", "weight_dtype"), ("MODEL",)),
    "LoraLoaderModelOnly": ({"model": "MODEL"}, ("lora_name", "strength_model"), ("MODEL",)),
    "CLIPLoader": ({}, ("clip_name", "type", "device"), ("CLIP",)),
    "VAELoader": ({}, ("vae_name",), ("VAE",)),
    "ModelSamplingSD3": ({"model": "MODEL"}, ("shift",), ("MODEL",)),
    "CLIPTextEncode": ({"clip": "CLIP"}, ("text",), ("CONDITIONING",)),
    "EmptyHunyuanLatentVideo": ({}, ("width", "height", "length", "batch_size"), ("LATENT",)),
    "LoadImage": ({}, ("image", "upload"), ("IMAGE", "MASK")),
    "CLIPVisionLoader": ({}, ("clip_name",), ("CLIP_VISION",)),
    "CLIPVisionEncode": (
        {"clip_vision": "CLIP_VISION", "image": "IMAGE"},
        ("crop",),
        ("CLIP_VISION_OUTPUT",),
    ),
    "WanImageToVideo": (
        {
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "vae": "VAE",
            "clip_vision_output": "CLIP_VISION_OUTPUT",
            "start_image": "IMAGE",
        },
        ("width", "height", "length", "batch_size"),
        ("CONDITIONING", "CONDITIONING", "LATENT"),
    ),
    "KSampler": (
        {
            "model": "MODEL",
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "latent_image": "LATENT",
        },
        ("seed", "control_after_generate", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
        ("LATENT",),
    ),
    "KSamplerAdvanced": (
        {
            "model": "MODEL",
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "latent_image": "LATENT",
        },
        (
            "add_noise",
            "noise_seed",
            "control_after_generate",
            "steps",
            "cfg",
            "sampler_name",
            "scheduler",
            "start_at_step",
            "end_at_step",
            "return_with_leftover_noise",
        ),
        ("LATENT",),
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, (), ("IMAGE",)),
    "CreateVideo": ({"images": "IMAGE"}, ("fps",), ("VIDEO",)),
    "SaveVideo": ({"video": "VIDEO"}, ("filename_prefix", "format", "codec"), ()),
}
_EDITOR_ONLY: Final = {"control_after_generate": "fixed", "upload": "image"}
_OPTIONAL: Final = {"clip_vision_output"}
_WIDTH: Final = 330
_LINE: Final = 28
"""Height of a slot or a setting, as the editor's newer and taller nodes draw them."""
_TITLE: Final = 50
_TEXT: Final = 120
"""Height of a field of several lines, beside the line of its own."""
_GAP: Final = 60


def workflow(
    about: Manifest, weights: str, lora: str | None = None, image: StartImage = "none"
) -> dict[str, Any]:
    """Text, or an image and a text, to video in the student's steps, without guidance.

    Args:
        about: The student.
        weights: File in ``models/diffusion_models``.
        lora: File in ``models/loras`` that is applied to it, if any.
        image: How the network sees the image that the video starts from.
    """
    nodes = _text_to_video(about, weights, lora)
    if image != "none":
        _start_from_image(nodes, with_clip=image == "latents and clip")
    return nodes


def _start_from_image(nodes: dict[str, Any], with_clip: bool) -> None:
    """Puts an image before a workflow's empty latents, and before its sampler's conditioning."""
    size = nodes["7"]["inputs"]
    wires: dict[str, Any] = {"start_image": ["17", 0]}
    nodes["17"] = _node("LoadImage", image=IMAGE)
    if with_clip:
        nodes["18"] = _node("CLIPVisionLoader", clip_name=CLIP)
        nodes["19"] = _node(
            "CLIPVisionEncode", clip_vision=["18", 0], image=["17", 0], crop="center"
        )
        wires["clip_vision_output"] = ["19", 0]
    nodes["7"] = _node(
        "WanImageToVideo", positive=["5", 0], negative=["6", 0], vae=["3", 0], **wires, **size
    )
    nodes["8"]["inputs"] |= {"positive": ["7", 0], "negative": ["7", 1], "latent_image": ["7", 2]}


def _text_to_video(about: Manifest, weights: str, lora: str | None) -> dict[str, Any]:
    video, schedule = about.video, about.schedule
    nodes: dict[str, Any] = {
        "1": _node("UNETLoader", unet_name=weights, weight_dtype="default"),
    }
    if lora:
        nodes["11"] = _node(
            "LoraLoaderModelOnly", model=["1", 0], lora_name=lora, strength_model=1.0
        )
    return nodes | {
        "2": _node("CLIPLoader", clip_name=TEXT_ENCODER, type="wan", device="default"),
        "3": _node("VAELoader", vae_name=VAE),
        "4": _node("ModelSamplingSD3", model=["11" if lora else "1", 0], shift=schedule.shift),
        "5": _node("CLIPTextEncode", clip=["2", 0], text=PROMPT),
        # At cfg 1 the sampler never evaluates it, but the node wants one.
        "6": _node("CLIPTextEncode", clip=["2", 0], text=""),
        "7": _node(
            "EmptyHunyuanLatentVideo",
            width=video.width,
            height=video.height,
            length=video.num_frames,
            batch_size=1,
        ),
        "8": _node(
            "KSampler",
            model=["4", 0],
            positive=["5", 0],
            negative=["6", 0],
            latent_image=["7", 0],
            seed=0,
            steps=len(schedule),
            cfg=1.0,
            sampler_name=schedule.comfyui_sampler(),
            scheduler="simple",
            denoise=1.0,
        ),
        "9": _node("VAEDecode", samples=["8", 0], vae=["3", 0]),
        "10": _node("CreateVideo", images=["9", 0], fps=video.fps),
        "12": _node(
            "SaveVideo", video=["10", 0], filename_prefix="video/sgmd", format="auto", codec="auto"
        ),
    }


def pair_workflow(
    about: Manifest,
    weights: tuple[str, str],
    high_noise_steps: int,
    loras: tuple[str, str] | None = None,
    image: StartImage = "none",
) -> dict[str, Any]:
    """The same for a student of two experts: two loaders, and a sampler for each expert's steps.

    The first sampler stops with the noise that is left, and the second one adds none.

    Args:
        about: The student.
        weights: Files of the high-noise and of the low-noise expert in ``models/diffusion_models``.
        high_noise_steps: The number of steps of the high-noise expert.
        loras: Files in ``models/loras`` that are applied to them, if any.
        image: How the networks see the image that the video starts from.
    """
    first, second = loras or (None, None)
    nodes = workflow(about, weights[0], first, image)
    sampler = nodes.pop("8")["inputs"]
    alone = {
        key: value
        for key, value in sampler.items()
        if key not in ("model", "latent_image", "seed", "denoise")
    }
    nodes["8"] = _node(
        "KSamplerAdvanced",
        model=["4", 0],
        latent_image=sampler["latent_image"],
        add_noise="enable",
        noise_seed=0,
        start_at_step=0,
        end_at_step=high_noise_steps,
        return_with_leftover_noise="enable",
        **alone,
    )
    nodes["13"] = _node("UNETLoader", unet_name=weights[1], weight_dtype="default")
    if second:
        nodes["14"] = _node(
            "LoraLoaderModelOnly", model=["13", 0], lora_name=second, strength_model=1.0
        )
    nodes["15"] = _node(
        "ModelSamplingSD3", model=["14" if second else "13", 0], shift=about.schedule.shift
    )
    nodes["16"] = _node(
        "KSamplerAdvanced",
        model=["15", 0],
        latent_image=["8", 0],
        add_noise="disable",
        noise_seed=0,
        start_at_step=high_noise_steps,
        end_at_step=len(about.schedule),
        return_with_leftover_noise="disable",
        **alone,
    )
    nodes["9"]["inputs"]["samples"] = ["16", 0]
    return nodes


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    wires, settings, _ = _NODES[kind]
    needed = {*wires, *settings} - set(_EDITOR_ONLY) - _OPTIONAL
    assert needed == set(inputs) - (_OPTIONAL & {*wires}), kind
    return {"class_type": kind, "inputs": inputs}


def to_ui(api: Mapping[str, Any]) -> dict[str, Any]:
    """The same workflow in the form that ComfyUI's editor opens, schema 1.0.

    The schema is at https://docs.comfy.org/specs/workflow_json. Nodes stand in columns, each to the
    right of what it takes its inputs from, so that no node covers another.
    """
    links: list[dict[str, Any]] = []
    nodes: dict[str, dict[str, Any]] = {}
    for order, (key, (position, size)) in enumerate(_positions(api).items()):
        kind = api[key]["class_type"]
        wires, settings, outputs = _NODES[kind]
        values = api[key]["inputs"]
        nodes[key] = {
            "id": int(key),
            "type": kind,
            "pos": position,
            "size": size,
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": [{"name": n, "type": t, "link": None} for n, t in wires.items()],
            "outputs": [{"name": t, "type": t, "links": []} for t in outputs],
            "properties": {"Node name for S&R": kind},
            "widgets_values": [_EDITOR_ONLY.get(s, values.get(s)) for s in settings],
        }
    for key, node in nodes.items():
        for slot, wire in enumerate(node["inputs"]):
            if wire["name"] not in api[key]["inputs"]:
                continue  # an optional one
            origin, output = api[key]["inputs"][wire["name"]]
            wire["link"] = len(links) + 1
            links.append(
                {
                    "id": wire["link"],
                    "origin_id": int(origin),
                    "origin_slot": output,
                    "target_id": int(key),
                    "target_slot": slot,
                    "type": wire["type"],
                }
            )
            nodes[origin]["outputs"][output]["links"].append(wire["link"])
    state = {"lastNodeId": max(map(int, api)), "lastLinkId": len(links), "lastRerouteId": 0}
    return {
        "version": 1,
        "revision": 0,
        "config": {},
        # The schema spells the last key so; the editor's code spells it as the other ones.
        "state": {"lastGroupId": 0, "lastGroupid": 0, **state},
        "groups": [],
        "nodes": list(nodes.values()),
        "links": links,
        "extra": {},
    }


def _positions(api: Mapping[str, Any]) -> dict[str, tuple[list[int], list[int]]]:
    """Position ``[x, y]`` and size ``[width, height]`` of each node, in the order they run in."""
    columns: dict[str, int] = {}

    def column(key: str) -> int:
        if key not in columns:
            wired = [v[0] for v in api[key]["inputs"].values() if isinstance(v, list)]
            columns[key] = 1 + max(map(column, wired), default=-1)
        return columns[key]

    found: dict[str, tuple[list[int], list[int]]] = {}
    bottoms: dict[int, int] = {}
    for key in sorted(api, key=column):
        wires, settings, outputs = _NODES[api[key]["class_type"]]
        lines = max(len(wires), len(outputs)) + len(settings)
        height = _TITLE + _LINE * lines + (_TEXT if "text" in settings else 0)
        top = bottoms.get(column(key), 40)
        found[key] = [40 + (_WIDTH + _GAP) * column(key), top], [_WIDTH, height]
        bottoms[column(key)] = top + height + _GAP
    return found
