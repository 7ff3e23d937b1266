"""LoRA files of Wan models, whoever wrote them: which tensor changes which weight, and how much.

Programs name the same layer differently (``transformer.blocks.0.attn1.to_q``,
``diffusion_model.blocks.0.self_attn.q``, ``lora_unet_blocks_0_self_attn_q``), call the factors
``lora_A`` and ``lora_B`` or ``lora_down`` and ``lora_up``, and keep alpha in a tensor for each
layer, in the file's metadata, in ``adapter_config.json`` or nowhere. A name is looked up among all
spellings of the network's own layers, so a file may hold any part of them, in any mix of spellings.
``docs/decisions/027-lora-dialects.md`` says why this does not go through diffusers' converters.

r rank
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from lightx2v_sgmd.families.wan_keys import transformer_to_original
from lightx2v_sgmd.families.wan_variants import IMAGE_TO_VIDEO, variant_of
from lightx2v_sgmd.files.safetensors_files import Header, read_header
from lightx2v_sgmd.files.tensor_reader import WholeTensors
from lightx2v_sgmd.networks.adapters import METADATA_KEY, PREFIX
from lightx2v_sgmd.system.errors import UserError, shortened
from lightx2v_sgmd.untrusted.fields import (
    ByLayer,
    Field,
    Flag,
    LayerName,
    Real,
    Several,
    Whole,
    first_problem,
    optional,
)
from lightx2v_sgmd.untrusted.json_text import METADATA, parse_json, read_json_object

PEFT_FILE: Final = "adapter_model.safetensors"
PEFT_CONFIG: Final = "adapter_config.json"

_DOWN: Final = "down"
_UP: Final = "up"
_ENDINGS: Final = (
    # A name after lora_A is that of PEFT's adapter, such as "default".
    (r"\.(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down)(?:\.[\w-]+)?\.weight", _DOWN),
    (r"\.(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up)(?:\.[\w-]+)?\.weight", _UP),
    (r"\.lora_B(?:\.[\w-]+)?\.bias", "up_bias"),
    (r"\.alpha", "alpha"),
    (r"\.(diff|diff_b|diff_m)", "difference"),
)
_KINDS: Final = tuple((re.compile(rf"(.+?){ending}", re.ASCII), kind) for ending, kind in _ENDINGS)
_UNSUPPORTED: Final = (
    (re.compile(r"\.(dora_scale|lora_magnitude_vector)\b"), "a DoRA"),
    (re.compile(r"\.lokr_"), "a LoKr"),
    (re.compile(r"\.hada_"), "a LoHa"),
    (re.compile(r"\.(oft_|boft_)"), "an OFT"),
    (re.compile(r"\.ia3_|\.(on_input|ia3_l)$"), "an IA3"),
    (re.compile(r"\.lora_mid\."), "a Tucker-decomposed LoRA (LoCon)"),
    (re.compile(r"\.modules_to_save\."), "a PEFT file with whole layers (modules_to_save)"),
    (re.compile(r"^(lora_te\d?_|text_encoder)"), "a LoRA with text encoder layers"),
)
_PREFIXES: Final = (
    "base_model.model.",
    "diffusion_model.",
    "transformer.",
    "model.",
    "module.",
    "pipe.dit.",
    "dit.",
    "unet.",
    "net.",
    "generator.",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
)
_WRAPPERS: Final = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

_RANK: Final = Whole(1, 2**16)
_ALPHA: Final = Real(1e-9, 1e9)
_SETTINGS: Final[Mapping[str, Field]] = {
    "r": _RANK,
    "lora_alpha": _ALPHA,
    "rank_pattern": optional(ByLayer(_RANK)),
    "alpha_pattern": optional(ByLayer(_ALPHA)),
    "target_modules": optional(Several(LayerName(), 0, 4096)),
    "lora_bias": Flag(),
    "use_rslora": Flag(),
    "use_dora": Flag(),
}


@dataclass(frozen=True)
class LoraUpdate:
    """What a LoRA file adds to a network, at strength 1; alpha is multiplied in.

    Attributes:
        factors: ``down [r, in]`` and ``up [out, r]`` by linear layer (diffusers' name):
            ``up @ down`` is added to its weight.
        differences: Tensors that are added to other parameters, by diffusers' name.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    differences: Mapping[str, Tensor]


@dataclass
class LoraLayer:
    """One layer's tensors in a file; ``name`` is its spelling there without prefix and ending."""

    name: str
    tensors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file whose tensors were assigned to a network's layers; nothing of it is loaded.

    Attributes:
        path: The file.
        header: Its tensors and metadata.
        layers: Layers with factors, by diffusers' name.
        differences: The stored name of each parameter's difference, by diffusers' name.
        image_layers: Tensors of image-to-video layers, which are left out.
        settings: Rank and alpha from its metadata or its ``adapter_config.json``, under PEFT's
            names; None if neither says anything.
    """

    path: Path
    header: Header
    layers: Mapping[str, LoraLayer]
    differences: Mapping[str, str]
    image_layers: tuple[str, ...]
    settings: Mapping[str, Any] | None

    def rank(self, layer: str) -> int:
        """The rank of a layer's factors."""
        return self.header.tensors[self.layers[layer].tensors[_DOWN]].shape[0]


def is_lora_key(key: str) -> bool:
    """True if a tensor's name is one that only LoRAs, supported or not, have."""
    return any(pattern.fullmatch(key) for pattern, _ in _KINDS) or any(
        pattern.search(key) for pattern, _ in _UNSUPPORTED
    )


def open_lora(
    path: Path, shapes: Mapping[str, tuple[int, ...]], skip_image_layers: bool = False
) -> LoraFile:
    """Assigns a file's tensors to a network's layers and checks their shapes; loads nothing.

    Args:
        path: The file.
        shapes: Shapes of the network's parameters, by diffusers' name.
        skip_image_layers: True leaves out what belongs to an image-to-video model's own layers.

    Raises:
        UserError: the file is no LoRA that can be applied to this network; one line says why.
    """
    header = read_header(path)
    if not header.tensors:
        raise UserError(f"lora: {path}: holds no tensors")
    _refuse_other_kinds(path, header.tensors)
    settings = _settings(path, header)
    known = _spellings(shapes)
    layers: dict[str, LoraLayer] = {}
    differences: dict[str, str] = {}
    image: list[str] = []
    for key in header.tensors:
        stored, kind, what = _taken_apart(key)
        if IMAGE_TO_VIDEO.search(key):
            image.append(key)
        elif kind == "difference":
            parameter = _parameter(stored, what, known, shapes)
            if parameter is None:
                raise _stranger(path, key)
            differences.setdefault(parameter, key)
        else:
            layer = known.get(stored)
            if not kind or layer is None or f"{layer}.weight" not in shapes:
                raise _stranger(path, key)
            layers.setdefault(layer, LoraLayer(stored)).tensors[kind] = key
    if image and not skip_image_layers:
        raise UserError(
            f"lora: {path}: {len(image)} of its {len(header.tensors)} tensors belong to "
            f"image-to-video layers ({shortened(image[0])}, ...), which this text-to-video model "
            "does not have; use a LoRA for text-to-video, or add --skip-image-layers to apply "
            "the rest"
        )
    found = LoraFile(path, header, layers, differences, tuple(image), settings)
    _check_shapes(found, shapes)
    return found


def read_lora(
    path: Path, shapes: Mapping[str, tuple[int, ...]], skip_image_layers: bool = False
) -> LoraUpdate:
    """Loads what a file adds to a network; the arguments are those of ``open_lora``.

    Raises:
        UserError: as ``open_lora``, or a tensor has values that are not finite.
    """
    file = open_lora(path, shapes, skip_image_layers)
    reader = WholeTensors([path])

    def read(key: str) -> Tensor:
        tensor = reader.tensor(key)
        wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor
        if not wide.isfinite().all():
            raise UserError(
                f"lora: {path}: {shortened(key)} has values that are not finite; the file is "
                "damaged, or its training diverged"
            )
        return wide

    factors: dict[str, tuple[Tensor, Tensor]] = {}
    differences = {name: read(key) for name, key in file.differences.items()}
    for layer, found in file.layers.items():
        down, up = read(found.tensors[_DOWN]), read(found.tensors[_UP])
        scale = _scale(file, layer, lambda key: read(key).float())
        if scale != 1:
            up = up.float() * scale
        shape = shapes[f"{layer}.weight"]
        if len(shape) == 2:
            factors[layer] = down.flatten(1), up.flatten(1)
        else:
            product = up.flatten(1).float() @ down.flatten(1).float()
            _add(differences, f"{layer}.weight", product.view(shape))
        if "up_bias" in found.tensors:
            _add(differences, f"{layer}.bias", scale * read(found.tensors["up_bias"]).float())
    return LoraUpdate(factors, differences)


def alpha_source(file: LoraFile) -> str:
    """The place where a file keeps its alphas, in words."""
    if any("alpha" in layer.tensors for layer in file.layers.values()):
        return "a tensor for each layer"
    if file.settings is not None:
        return str(file.settings["source"])
    return "none: alpha is the rank"


def _add(differences: dict[str, Tensor], name: str, more: Tensor) -> None:
    differences[name] = more if name not in differences else differences[name].float() + more


def _scale(file: LoraFile, layer: str, read: Any) -> float:
    """The scale of a layer's product: alpha over the rank, 1 where nothing says otherwise."""
    found, rank, settings = file.layers[layer], file.rank(layer), file.settings
    if "alpha" in found.tensors:
        return float(read(found.tensors["alpha"]).flatten()[0]) / rank
    if settings is None:
        return 1.0
    alpha = settings["lora_alpha"]
    patterns = settings.get("alpha_pattern") or {}
    if patterns:
        from peft.utils.other import get_pattern_key

        for name in (found.name, layer):
            alpha = patterns.get(get_pattern_key(list(patterns), name), alpha)
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _taken_apart(key: str) -> tuple[str, str, str]:
    """A key's layer without prefixes, what the tensor is ("" if no part of a LoRA), and its kind.

    The kind is that of a difference: ``diff``, ``diff_b`` or ``diff_m``.
    """
    for pattern, kind in _KINDS:
        match = pattern.fullmatch(key)
        if match:
            return without_prefixes(match[1]), kind, match[2] if kind == "difference" else ""
    return key, "", ""


def without_prefixes(name: str) -> str:
    """A layer's name without the prefixes that programs put before it."""
    name = _WRAPPERS.sub("", name)
    while prefix := next((p for p in _PREFIXES if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return name


def _spellings(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The network's layers, and its parameters outside layers, by every name that files use."""
    known: dict[str, str] = {}
    for parameter in shapes:
        ours = _layer(parameter)
        for name in (ours, _layer(transformer_to_original(parameter))):
            known[name] = known[name.replace(".", "_")] = ours
    return known


def _layer(parameter: str) -> str:
    return parameter.removesuffix(".weight").removesuffix(".bias")


def _parameter(
    stored: str, what: str, known: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> str | None:
    """The parameter that a difference is added to.

    Modulation has two names for the same, for two programs: ``X.diff_m``, ``X.modulation.diff``.
    """
    if what == "diff_m":
        return known.get(f"{stored}.modulation") or known.get(f"{stored}_modulation")
    layer = known.get(stored)
    ending = "bias" if what == "diff_b" else "weight"
    for name in (f"{layer}.{ending}", layer):
        if name is not None and name in shapes:
            return name
    return None


def _refuse_other_kinds(path: Path, keys: Iterable[str]) -> None:
    for key in keys:
        kind = next((what for pattern, what in _UNSUPPORTED if pattern.search(key)), None)
        if kind is not None:
            raise UserError(
                f"lora: {path}: is {kind} file ({shortened(key)}), which is not supported; give a "
                "plain LoRA (lora_A and lora_B, or lora_down and lora_up), or weights that it "
                "was merged into"
            )


def _stranger(path: Path, key: str) -> UserError:
    if not any(pattern.fullmatch(key) for pattern, _ in _KINDS) and key.endswith(
        (".weight", ".bias")
    ):
        return UserError(
            f"lora: {path}: {shortened(key)} belongs to no LoRA: it is a whole weight; if the file "
            "holds a whole network, give it as --weights with --base"
        )
    variant = variant_of([key])
    made_for = f"it was made for {variant}" if variant else "the file was made for another one"
    return UserError(f"lora: {path}: {shortened(key)} matches no layer of this model; {made_for}")


def _check_shapes(file: LoraFile, shapes: Mapping[str, tuple[int, ...]]) -> None:
    settings = file.settings or {}
    told = None if settings.get("rank_pattern") else settings.get("r")
    for name, key in file.differences.items():
        _check(file, key, f"{name} ", shapes[name])
    for layer, found in file.layers.items():
        weight, tensors = shapes[f"{layer}.weight"], found.tensors
        for kind, wanted in ((_DOWN, weight[1:]), (_UP, weight[:1])):
            if kind not in tensors:
                continue
            shape = file.header.tensors[tensors[kind]].shape
            rank = shape[0] if kind == _DOWN else shape[1] if len(shape) > 1 else 1
            rank = told or rank
            whole = (rank, *wanted) if kind == _DOWN else (*wanted, rank)
            if _without_ones(shape) != _without_ones(whole):
                raise _other_size(file, tensors[kind], shape, whole)
        pair = [kind for kind in (_DOWN, _UP) if kind in tensors]
        if len(pair) != 2:
            present = tensors[pair[0]] if pair else next(iter(tensors.values()))
            other = "lora_up (lora_B)" if pair == [_DOWN] else "lora_down (lora_A)"
            raise UserError(
                f"lora: {file.path}: has {shortened(present)}, but no {other} of that layer; the "
                "file is incomplete, copy or convert it again"
            )
        up_rank = file.header.tensors[tensors[_UP]].shape[1]
        if up_rank != file.rank(layer):
            raise UserError(
                f"lora: {file.path}: {shortened(tensors[_UP])} has rank {up_rank}, the other "
                f"factor of that layer {file.rank(layer)}; the file is damaged"
            )
        if "alpha" in tensors and math.prod(file.header.tensors[tensors["alpha"]].shape) != 1:
            raise UserError(
                f"lora: {file.path}: {shortened(tensors['alpha'])} is not one number; the file "
                "is damaged"
            )
        if "up_bias" in tensors:
            _check(file, tensors["up_bias"], "", weight[:1])


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without its kernel if that is 1x1: some store matrices as such convolutions."""
    return shape[:2] if all(n == 1 for n in shape[2:]) else shape


def _check(file: LoraFile, key: str, name: str, wanted: tuple[int, ...]) -> None:
    shape = file.header.tensors[key].shape
    if shape != tuple(wanted):
        raise _other_size(file, name.strip() or key, shape, tuple(wanted))


def _other_size(
    file: LoraFile, name: str, found: tuple[int, ...], wanted: tuple[int, ...]
) -> UserError:
    return UserError(
        f"lora: {file.path}: {shortened(name)} is {list(found)}, the model's layer needs "
        f"{list(wanted)}; the file was made for another size of model"
    )


def _settings(path: Path, header: Header) -> dict[str, Any] | None:
    """Rank and alpha as the file's metadata or PEFT's configuration beside it say them."""
    text = header.metadata.get(METADATA_KEY)
    config = path.parent / PEFT_CONFIG
    if text is not None:
        return _checked(path, f"its {METADATA_KEY}", _parsed(path, text))
    if path.name == PEFT_FILE and config.is_file():
        saved = read_json_object(config, remedy="copy the LoRA again")
        kind = str(saved.get("peft_type", "LORA"))
        if kind != "LORA":
            raise UserError(
                f"lora: {config}: describes a {shortened(kind)} adapter, which is not supported; "
                "give a plain LoRA"
            )
        # The layers are those in the file; PEFT may name them by a pattern, which is not run.
        told = {key: value for key, value in saved.items() if key != "target_modules"}
        return _checked(path, PEFT_CONFIG, told)
    alpha = header.metadata.get("ss_network_alpha")
    if alpha is None:
        return None
    try:
        number = float(alpha)
    except ValueError:  # "None" or "Dynamic"
        return None
    if not 0 < number < 1e9:
        raise UserError(
            f"lora: {path}: in its metadata, ss_network_alpha is {shortened(alpha)}, which is no "
            "alpha; the file is damaged"
        )
    return {"lora_alpha": number, "source": "ss_network_alpha in the metadata"}


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        saved = parse_json(text, METADATA)
        return {str(key).removeprefix(PREFIX): value for key, value in saved.items()}
    except (ValueError, AttributeError) as error:
        raise UserError(f"lora: {path}: its {METADATA_KEY} cannot be read") from error


def _checked(path: Path, source: str, saved: Mapping[str, Any]) -> dict[str, Any]:
    if problem := first_problem(saved, _SETTINGS, frozenset({"r", "lora_alpha"})):
        raise UserError(f"lora: {path}: in {source}, {problem}")
    if saved.get("use_dora"):
        raise UserError(
            f"lora: {path}: is a DoRA file ({source} says so), which is not supported; give a "
            "plain LoRA"
        )
    where = source.removeprefix("its ")
    return {**{key: saved[key] for key in _SETTINGS if key in saved}, "source": where}
