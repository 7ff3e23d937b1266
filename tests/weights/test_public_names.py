from __future__ import annotations

from weights.public_names import public_name, public_options


def test_a_vision_encoder_is_named_without_its_folder() -> None:
    options = {"pixel_weight": 1.0, "adp": {"vision_encoder": "/home/me/models/sam"}}
    assert public_options(options)["adp"] == {"vision_encoder": "sam"}
    assert public_name("Wan-AI/Wan2.1-T2V-14B-Diffusers") == "Wan-AI/Wan2.1-T2V-14B-Diffusers"
    assert (public_name("~/wan"), public_name("../x/wan"), public_name("sprites")) == (
        *("wan", "wan"),
        "sprites",
    )
