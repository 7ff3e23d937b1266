"""ComfyUI's workflows run the student's steps."""

from __future__ import annotations

import json
from typing import Any

import torch

from lightx2v_sgmd.schedule import Schedule


def test_the_workflow_runs_the_students_steps(exports: Any) -> None:
    out = exports("comfyui")
    api = json.loads((out / "workflow_api.json").read_text())
    kinds = {node["class_type"]: node["inputs"] for node in api.values()}
    assert kinds["UNETLoader"]["unet_name"] == "teacher_sgmd_4step_bf16.safetensors"
    assert kinds["CLIPLoader"]["type"] == "wan"
    assert kinds["ModelSamplingSD3"]["shift"] == 8
    sampler = kinds["KSampler"]
    assert (sampler["sampler_name"], sampler["scheduler"]) == ("euler", "simple")
    assert (sampler["steps"], sampler["cfg"], sampler["denoise"]) == (4, 1, 1)
    size = kinds["EmptyHunyuanLatentVideo"]
    assert (size["width"], size["height"], size["length"]) == (32, 32, 9)
    # ComfyUI's simple scheduler on 1000 shifted timesteps, as its code has it.
    u = torch.arange(1, 1001, dtype=torch.float64) / 1000
    sigmas = 8 * u / (1 + 7 * u)
    taken = [sigmas[-(1 + int(i * 1000 / 4))].item() for i in range(4)]
    assert torch.allclose(torch.tensor(taken), Schedule().times[:-1], atol=1e-6)


def test_both_forms_of_the_workflow_say_the_same(exports: Any) -> None:
    out = exports("comfyui")
    api = json.loads((out / "workflow_api.json").read_text())
    ui = json.loads((out / "workflow.json").read_text())
    nodes = {str(node["id"]): node for node in ui["nodes"]}
    assert {key: node["class_type"] for key, node in api.items()} == {
        key: node["type"] for key, node in nodes.items()
    }
    assert ui["version"] == 1 and ui["state"]["lastLinkId"] == len(ui["links"])
    links = {link["id"]: link for link in ui["links"]}
    assert len(links) == len(ui["links"])
    for key, node in api.items():
        wired = {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
        assert {wire["name"] for wire in nodes[key]["inputs"]} == set(wired)
        for slot, wire in enumerate(nodes[key]["inputs"]):
            link = links[wire["link"]]
            origin, output = str(link["origin_id"]), link["origin_slot"]
            assert [origin, output] == wired[wire["name"]]
            assert (str(link["target_id"]), link["target_slot"]) == (key, slot)
            kind = nodes[origin]["outputs"][output]["type"]
            assert kind == link["type"] == wire["type"]
            assert wire["link"] in nodes[origin]["outputs"][output]["links"]
            assert nodes[origin]["order"] < nodes[key]["order"]
            assert nodes[origin]["pos"][0] < nodes[key]["pos"][0]
        plain = [value for value in node["inputs"].values() if not isinstance(value, list)]
        shown = [v for v in nodes[key]["widgets_values"] if v != "fixed"]
        assert sorted(map(str, shown)) == sorted(map(str, plain))
    sampler = next(node for node in ui["nodes"] if node["type"] == "KSampler")
    assert sampler["widgets_values"] == [0, "fixed", 4, 1.0, "euler", "simple", 1.0]
