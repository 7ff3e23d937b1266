"""Which of two experts a file is for, by names that publishers give to files and folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.files.expert_files import expert_files, expert_of_file


@pytest.mark.parametrize(
    ("path", "expert"),
    [
        ("wan2.2_t2v_high_noise_14B_fp16.safetensors", 0),
        ("Wan2.2-T2V-A14B-4steps-lora-rank64-Seko-V1.1/low_noise_model.safetensors", 1),
        ("wan2.2_i2v_A14b_low_noise_lora_rank64_lightx2v_4step_1022.safetensors", 1),
        ("export/high_noise_model/adapter_model.safetensors", 0),
        ("LowNoise/high-noise.safetensors", 0),  # the file's own name decides
        ("high_noise_and_low_noise.safetensors", None),
        ("wan/lora.safetensors", None),
    ],
)
def test_names_tell_the_expert(path: str, expert: int | None) -> None:
    assert expert_of_file(Path(path)) == expert


def test_a_pair_is_one_file_of_each() -> None:
    high, low = Path("low_noise/b_high_noise.safetensors"), Path("a_low_noise.safetensors")
    assert expert_files([low, high]) == (high, low)
    assert expert_files([high, high]) is None
    assert expert_files([high]) is None
    assert expert_files([high, Path("high_noise/other.safetensors")]) is None
