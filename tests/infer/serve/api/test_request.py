"""Requests of videos: what they may say, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from infer.serve.backend import Backend
from tests.infer.serve.api.clients import error_of


def test_json_and_forms_ask_for_the_same(client: TestClient) -> None:
    asked = {"prompt": "a fox", "seed": 5, "size": "48x32", "num_frames": 17, "fps": 4}
    extra = {"seed": 5, "width": 48, "height": 32, "num_frames": 17, "fps": 4}
    form = {key: (None, str(value)) for key, value in asked.items()}
    for response in (
        client.post("/v1/videos", json=asked),
        client.post("/v1/videos", files=form),
        client.post("/v1/videos", data={"prompt": "a fox", "extra_params": json.dumps(extra)}),
    ):
        assert response.status_code == 200, response.text
        made = response.json()
        assert made["object"] == "video" and made["status"] == "queued"
        assert (made["size"], made["num_frames"], made["fps"]) == ("48x32", 17, 4.0)
        assert (made["seed"], made["seconds"], made["prompt"]) == (5, "4.25", "a fox")


def test_what_is_left_out_is_as_trained(client: TestClient) -> None:
    made = client.post("/v1/videos", json={"prompt": "x"}).json()
    assert (made["size"], made["num_frames"], made["fps"]) == ("32x32", 9, 8.0)
    again = client.post("/v1/videos", json={"prompt": "x"}).json()
    assert made["seed"] != again["seed"]
    longer = client.post("/v1/videos", json={"prompt": "x", "seconds": "2"}).json()
    assert longer["num_frames"] == 17


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_inference_steps": 30}, "distilled for exactly 4 steps"),
        ({"guidance_scale": 5.0}, "learned its teacher's guidance"),
        ({"negative_prompt": "blurry"}, "none of"),
        ({"flow_shift": 3}, "flow shift 8"),
        ({"generate_sound": True}, "generate_sound: this server has no such thing"),
        ({"input_reference": "data:..."}, "text alone"),
        ({"extra_params": {"input_reference": "x"}}, "extra_params.input_reference: is unknown"),
        ({"image_url": "http://x/a.png"}, "image_url: is not read by this server; leave it out"),
        ({"lora": 5}, "lora: should be a valid string"),
        ({"lora": {}}, "lora.name: is missing; give the name of a LoRA"),
        ({"lora": {"name": "x"}}, "lora: 'x' is not served with 'tiny' here"),
        ({"lora": {"name": "x", "scale": "1"}}, "lora: 'x' is not served with 'tiny' here"),
        ({"lora": {"name": "x", "path": "/a"}}, "lora.path: is not read"),
        ({"lora": {"name": "x", "scale": 0.5}}, "lora.scale: LoRAs are served at strength 1"),
        ({"lora": "x"}, "with 'tiny' here; it has none; start it with --lora-folder"),
        ({"extra_params": {"guidance_scale": 2}}, "extra_params.guidance_scale"),
        ({"extra_params": {"fast": True}}, "extra_params.fast: is unknown"),
        ({"extra_params": "{"}, "extra_params: is not JSON"),
        ({"seed": 1, "extra_params": {"seed": 2}}, "one of the two"),
        ({"sead": 1}, "did you mean seed"),
        ({"size": "33x32"}, "width: 33 is not divisible by 16"),
        ({"size": "wide"}, "size: is not WIDTHxHEIGHT"),
        ({"size": "32x32", "width": 48}, "one of the two"),
        ({"num_frames": 8}, "use 9"),
        ({"seconds": "4", "num_frames": 9}, "one of the two"),
        ({"seconds": "soon"}, "not a number of seconds"),
        ({"width": 1024, "height": 1024}, "more than the 36,864"),
        ({"seed": -1}, "seed: should be greater"),
        ({"seed": True}, "seed: should be a valid integer"),
        ({"fps": 0}, "fps: should be greater"),
        ({"prompt": " "}, "prompt: is empty"),
        ({"prompt": "x" * 5000}, "more than 4,000"),
        ({"prompt": "a\0b"}, "zero byte"),
        ({"prompt": "\ud800"}, "unable to parse raw data as a unicode string"),
        ({"prompt": 5}, "prompt: should be a valid string"),
    ],
)
def test_a_request_that_cannot_be_honoured_is_refused(
    client: TestClient, backend: Backend, fields: dict[str, Any], message: str
) -> None:
    body = json.dumps({"prompt": "x", **fields})
    headers = {"content-type": "application/json"}
    assert message in error_of(client.post("/v1/videos", content=body, headers=headers), 400)
    assert backend.store.counts()["queued"] == 0


def test_what_asks_for_nothing_else_is_taken(client: TestClient) -> None:
    asked = {"prompt": "x", "num_inference_steps": 4, "guidance_scale": 1, "negative_prompt": ""}
    asked |= {"generate_sound": False, "enable_teacache": None}
    form = {"prompt": "x", "rollout": "false"}
    for response in (client.post("/v1/videos", json=asked), client.post("/v1/videos", data=form)):
        assert response.status_code == 200, response.text


def test_an_uploaded_image_is_refused(client: TestClient) -> None:
    files: Any = {"prompt": (None, "x"), "input_reference": ("a.png", b"\x89PNG", "image/png")}
    assert "text alone" in error_of(client.post("/v1/videos", files=files), 400)


@pytest.mark.parametrize("body", [b"[" * 5000, b"[]", b"{", b"\xff", b'{"prompt": NaN}', b""])
def test_what_is_no_json_object_is_refused(client: TestClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    error_of(client.post("/v1/videos", content=body, headers=headers), 400)
