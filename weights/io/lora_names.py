"""The names of adapters in a file, for each program that reads them.

Adapters are first made under the portable names (``weights.io.adapters``), which most programs
read. Others want their own: which prefix, which ends, where alpha stands, and whether changes of
biases, norms and modulation can be said at all. Sources: the loaders of diffusers 0.42
(``WanLoraLoaderMixin``, ``load_lora_adapter``), PEFT 0.21 (``PeftModel.from_pretrained``),
musubi-tuner 30c658c (``utils/lora_utils.py``, ``networks/lora.py``) and LightX2V's trainer f8aee98
(``model_zoo/base.py``).

r rank
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from lightx2v_sgmd.families.wan.keys import transformer_to_original
from lightx2v_sgmd.files.lora_folder import DIFFUSERS_FILE, PEFT_FILE
from lightx2v_sgmd.networks.adapters import METADATA_KEY
from lightx2v_sgmd.networks.adapters import PREFIX as DIFFUSERS_PREFIX
from weights.io.adapters import difference_names, factor_names, is_matrix

TENSOR: Final = "tensor"
CONFIG: Final = "configuration"
NOWHERE: Final = "nowhere"
Spell = Callable[[str], str]


def _ours(layer: str) -> str:
    return layer


def _original(layer: str) -> str:
    return transformer_to_original(f"{layer}.weight").removesuffix(".weight")


def _flat(layer: str) -> str:
    return _original(layer).replace(".", "_")


@dataclass(frozen=True)
class Names:
    """The names that a program gives to adapters.

    Attributes:
        name: The value of ``--names``.
        file: The file's name; ``{stem}`` stands for what the export is made of.
        prefix: The start of every name.
        spell: A function from diffusers' name of a layer to the program's.
        down: The end of the names of down factors ``[r, in]``.
        up: The end of the names of up factors ``[out, r]``.
        alpha: ``TENSOR``: one for each layer. ``CONFIG``: in PEFT's configuration. ``NOWHERE``:
            the scale is multiplied into the up factor.
        biases: True if changes of biases are stored, for all layers or none.
        module: The spelling of layers in settings: that of the network that loads the file.
    """

    name: str
    file: str
    prefix: str
    spell: Spell
    down: str
    up: str
    alpha: str
    biases: bool
    module: Spell = _ours

    def stored(self, layer: str) -> str:
        """The start of the names of a layer's tensors, from diffusers' name of the layer."""
        return self.prefix + self.spell(layer)


_AB: Final = (".lora_A.weight", ".lora_B.weight")
_DOWN_UP: Final = (".lora_down.weight", ".lora_up.weight")
_MUSUBI_FILE: Final = "{stem}_musubi_lora.safetensors"

# diffusers takes a file whose name ends as its own from a folder with others.
PORTABLE: Final = Names(
    "portable",
    f"{{stem}}_{DIFFUSERS_FILE}",
    "diffusion_model.",
    _original,
    *_DOWN_UP,
    TENSOR,
    True,
)
"""Names for ComfyUI, LightX2V, diffusers and DiffSynth-Studio, from ``weights.io.adapters``."""
DIFFUSERS: Final = Names("diffusers", DIFFUSERS_FILE, DIFFUSERS_PREFIX, _ours, *_AB, NOWHERE, True)
PEFT: Final = Names("peft", PEFT_FILE, "base_model.model.", _ours, *_AB, CONFIG, True)
MUSUBI: Final = Names("musubi", _MUSUBI_FILE, "lora_unet_", _flat, *_DOWN_UP, TENSOR, False)
LIGHTX2V_TRAIN: Final = Names(
    "lightx2v_train",
    DIFFUSERS_FILE,
    DIFFUSERS_PREFIX,
    _original,
    *_AB,
    NOWHERE,
    True,
    module=_original,
)
NAMES: Final[Mapping[str, Names]] = {
    names.name: names for names in (PORTABLE, DIFFUSERS, PEFT, MUSUBI, LIGHTX2V_TRAIN)
}


@dataclass(frozen=True)
class LayerFactors:
    """One layer's factors: ``scale * up [out, r] @ down [r, in]``, and the change of its bias."""

    down: Tensor
    up: Tensor
    scale: float
    bias: Tensor | None

    @property
    def rank(self) -> int:
        """The rank of the factors."""
        return self.down.shape[0]


def pairs_in(
    portable: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, LayerFactors]:
    """The linear layers of tensors under portable names, by diffusers' name of the layer.

    Args:
        portable: Tensors by portable name.
        shapes: Shapes of the network's weights, by diffusers' name.
    """
    found = {}
    for name, shape in shapes.items():
        if not is_matrix(name, shape):
            continue
        up, down, alpha = factor_names(name)
        if up not in portable:
            continue
        layer, rank = name.removesuffix(".weight"), portable[down].shape[0]
        scale = portable[alpha].item() / rank if alpha is not None and alpha in portable else 1.0
        bias = portable.get(difference_names(f"{layer}.bias")[0])
        found[layer] = LayerFactors(portable[down], portable[up], scale, bias)
    return found


def renamed(pairs: Mapping[str, LayerFactors], names: Names) -> dict[str, Tensor]:
    """The tensors of layers under a program's names, in the precision that they have."""
    tensors: dict[str, Tensor] = {}
    biased = names.biases and any(pair.bias is not None for pair in pairs.values())
    for layer, pair in pairs.items():
        stored, up = names.stored(layer), pair.up
        if names.alpha == NOWHERE and pair.scale != 1:
            up = (up.float() * pair.scale).to(up.dtype)
        tensors[stored + names.down], tensors[stored + names.up] = pair.down, up
        if names.alpha == TENSOR:
            tensors[f"{stored}.alpha"] = torch.tensor(pair.scale * pair.rank)
        if biased:
            bias = torch.zeros(up.shape[0], dtype=up.dtype) if pair.bias is None else pair.bias
            # PEFT scales the bias with the product.
            scale = pair.scale if names.alpha == CONFIG else 1.0
            tensors[stored + names.up.removesuffix("weight") + "bias"] = (
                bias if scale == 1 else (bias.float() / scale).to(bias.dtype)
            )
    return tensors


def settings_of(pairs: Mapping[str, LayerFactors], names: Names) -> dict[str, Any]:
    """PEFT's settings for layers under a program's names.

    Alpha is that of the layers where the names leave it to a configuration. Elsewhere it is the
    rank: loaders multiply a tensor of alpha into the factors before they read the settings.
    """
    ranks = {names.module(layer): pair.rank for layer, pair in pairs.items()}
    alphas: dict[str, float] = {
        names.module(layer): pair.scale * pair.rank if names.alpha == CONFIG else pair.rank
        for layer, pair in pairs.items()
    }
    rank, alpha = _usual(ranks.values()), _usual(alphas.values())
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: r for module, r in ranks.items() if r != rank},
        "alpha_pattern": {module: a for module, a in alphas.items() if a != alpha},
        "target_modules": list(ranks),
        "lora_bias": names.biases and any(pair.bias is not None for pair in pairs.values()),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }


def header_settings(pairs: Mapping[str, LayerFactors], names: Names) -> dict[str, str]:
    """The entry of a file's header that tells diffusers rank, alpha and layers."""
    if names.alpha == CONFIG or not pairs:
        return {}
    settings = {f"{DIFFUSERS_PREFIX}{key}": v for key, v in settings_of(pairs, names).items()}
    return {METADATA_KEY: json.dumps(settings, sort_keys=True)}


def peft_config(pairs: Mapping[str, LayerFactors], base: str) -> dict[str, Any]:
    """The content of ``adapter_config.json``.

    Args:
        pairs: The layers.
        base: Name of the model that the adapters belong to.
    """
    about = {"peft_type": "LORA", "base_model_name_or_path": base, "inference_mode": True}
    return {**about, **settings_of(pairs, PEFT)}


def _usual(values: Iterable[float]) -> Any:
    return next((value for value, _ in Counter(values).most_common(1)), 1)
