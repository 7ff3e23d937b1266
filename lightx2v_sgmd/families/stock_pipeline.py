"""The stock pipeline of a family in diffusers, and the sampler of its authors."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Pipeline(NamedTuple):
    """The stock pipeline of a family, by the classes of its parts.

    Attributes:
        name: The pipeline's class in diffusers.
        transformer: The network's class in diffusers.
        vae: The VAE's class in diffusers.
        text_encoder: The text encoder's class in transformers.
        tokenizer: The tokenizer's class in transformers, for folders that name none.
        shared: The folders of the parts that a student shares with its teacher.
        folder: The folder of the network, which is its name in ``model_index.json`` too.
        architecture: The name of the network's architecture in the headers of files of weights, as
            trainers of LoRAs write it; empty if they have none.
        implementation: The address of the code that defines the names of exported weights.
        portable_loras: True if LoRA files of its students are written under the names of several
            programs; otherwise diffusers' are the only ones.
    """

    name: str
    transformer: str
    vae: str
    text_encoder: str
    tokenizer: str = "T5TokenizerFast"
    shared: tuple[str, ...] = ("vae", "text_encoder", "tokenizer")
    folder: str = "transformer"
    architecture: str = ""
    implementation: str = ""
    portable_loras: bool = False


class AuthorsSampler(NamedTuple):
    """The sampler with which a model's authors run it.

    Attributes:
        solver: The solver's name.
        shift: The flow shift of its steps.
    """

    solver: Literal["unipc", "euler", "ddim"]
    shift: float
