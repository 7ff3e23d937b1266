"""The keys of LightX2V's trainer, and what becomes of each in a job of this project.

Read off ModelTC/LightX2V at f8aee98: the YAMLs of ``lightx2v_train/configs/train`` for Wan2.1 with
the methods ``video_sgmd`` and ``video_dmd``, and the code that reads them. The conversion itself is
in ``convert.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

COMMIT: Final = "f8aee98"
"""The commit of ModelTC/LightX2V whose keys these are."""

MODELS: Final = ("wan_t2v", "wan_t2v_14b")
"""Models of theirs that are teachers here: ``model.name``."""

NEGATIVE_PROMPT: Final = (
    "镜头晃动，色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，"
    "最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，"
    "畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""The prompt that their trainers for Wan guide away from, whatever the YAML says.

It is ``WAN_NEGATIVE_PROMPT`` of ``lightx2v_train/utils/constants.py``: Wan's own for text-to-video,
with "camera shake" before it, as Wan has it for image-to-video.
"""

METHODS: Final[Mapping[str, str]] = {
    "video_sgmd": "sgmd",
    "video_dmd": "dmd2",
    "lightx2v_sgmd": "sgmd",
}
"""Methods: ``training.method`` there, and ours. ``lightx2v_sgmd`` registers the last name."""

MAPPED: Final[Mapping[str, str]] = {
    "model.name": "teacher.path",
    "model.pretrained_model_name_or_path": "teacher.path",
    "model.running_dtype": "teacher.dtype",
    "model.teacher.name": "teacher.path",
    "model.teacher.pretrained_model_name_or_path": "teacher.path",
    "model.fake.name": "teacher.path",
    "model.fake.pretrained_model_name_or_path": "teacher.path",
    "distributed.fsdp2.enabled": "parallel.strategy",
    "distributed.sequence_parallel.enabled": "parallel.sequence",
    "distributed.sequence_parallel.size": "parallel.sequence",
    "distributed.timeout_minutes": "parallel.timeout_minutes",
    "data.train.data_path": "data.prompts",
    "data.train.batch_size": "train.micro_batch",
    "training.method": "method.name",
    "training.max_train_iters": "train.iterations",
    "training.gradient_accumulation_iters": "train.accumulation",
    "training.gradient_checkpointing": "parallel.gradient_checkpointing",
    "training.max_grad_norm": "train.clip",
    "training.lr_scheduler": "train.warmup",
    "training.lr_warmup_iters": "train.warmup",
    "training.save_every_iters": "train.checkpoint_every",
    "training.save_total_limit": "train.keep_checkpoints",
    "training.output_dir": "output.dir",
    "training.teacher.guidance_scale": "teacher.guidance_scale",
    "training.dmd.guidance_scale": "teacher.guidance_scale",
    "training.dmd.fake_update_ratio": "method.fake_score_updates",
    "training.dmd.height": "video.height",
    "training.dmd.width": "video.width",
    "training.dmd.num_frames": "video.num_frames",
    "training.dmd.denoising_step_list": "schedule.base",
    "scheduler.time_shift_settings.time_shift_mu": "schedule.shift",
    "training.dmd.timestep_shift": "train.score_shift",
    "training.dmd.min_step_ratio": "train.sigma_min",
    "training.dmd.max_step_ratio": "train.sigma_max",
    "inference.infer_every_iters": "train.sample_every",
    "resume.auto_resume": "--resume",
    **{
        f"training.{theirs}.{key}": f"{ours}.{name}"
        for theirs, ours in (("student", "student"), ("fake", "fake_score"))
        for key, name in (
            ("train_type", "train"),
            ("lora.rank", "lora.rank"),
            ("lora.alpha", "lora.alpha"),
            ("lora.target_modules", "lora.targets"),
            ("optimizer.learning_rate", "optimizer.lr"),
            ("optimizer.adam_beta1", "optimizer.betas"),
            ("optimizer.adam_beta2", "optimizer.betas"),
            ("optimizer.weight_decay", "optimizer.weight_decay"),
            ("optimizer.adam_epsilon", "optimizer.eps"),
        )
    },
}
"""Our key, or option, for each of their keys that has one."""

LORA_TARGETS: Final[Mapping[str, str]] = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
"""Linear layers of a block: the original names, which LightX2V uses, and those of diffusers.

With ``self_attn.`` or ``cross_attn.`` before a name they mean one of the two attentions.
"""


@dataclass(frozen=True)
class Unmapped:
    """Keys of theirs that no key here stands for.

    Attributes:
        pattern: The keys, with ``*`` for any part.
        reason: Why there is none.
        same: Values under which both trainers do the same; None if they do with every value.
    """

    pattern: str
    reason: str
    same: tuple[Any, ...] | None = None

    def differs(self, value: Any) -> bool:
        """True if a student that is trained here differs from theirs because of this value."""
        return self.same is not None and value not in self.same


_NO_TERM: Final = "this trainer has no such loss term"
_FIXED: Final = "score and step times are those of flow matching in 1000 timesteps"
_UNUSED: Final = "LightX2V's bidirectional video trainers do not use it"
_LOADING: Final = "this project decides itself what is loaded, and in which precision"
_DATA: Final = "these methods read prompts alone, and encode them once"
_SAMPLES: Final = "sample videos are made in the student's steps, at the size that is trained"

UNMAPPED: Final = (
    Unmapped("scheduler.time_shift_settings.do_time_shift", "steps are always shifted", (True,)),
    Unmapped("scheduler.time_shift_settings.shift_type", "the shift is linear", ("linear",)),
    Unmapped("scheduler.time_shift_settings.time_shift_power", "the shift is linear", (1,)),
    Unmapped("scheduler.time_shift_settings.sigma_min", "a student's last step ends at 0", (0,)),
    Unmapped("scheduler.time_shift_settings.extra_one_step", _FIXED, (True,)),
    Unmapped("scheduler.num_train_timesteps", _FIXED, (1000,)),
    Unmapped("scheduler.*", _UNUSED),
    Unmapped("training.dmd.warp_denoising_step", "steps are always shifted", (True,)),
    Unmapped("training.dmd.num_inference_steps", "the number of schedule.base is taken"),
    Unmapped("training.dmd.num_train_timestep", _FIXED, (1000,)),
    Unmapped("training.dmd.ts_schedule*", "score times do not depend on the exit step", (False,)),
    Unmapped("training.dmd.min_score_timestep", "score times are drawn from 0 on", (0,)),
    Unmapped("training.dmd.div_loss.enabled", f"{_NO_TERM} (diversity)", (False,)),
    Unmapped("training.dmd.fake_real.enabled", f"{_NO_TERM} (fake score on real data)", (False,)),
    Unmapped(
        "training.dmd.ida.enabled",
        "the fake score is trained alone, and not moved towards the student",
        (False,),
    ),
    Unmapped("training.dmd.cdm.enabled", f"{_NO_TERM} (CDM)", (False,)),
    Unmapped("training.dmd.random_schedule.enabled", "the steps are fixed", (False,)),
    Unmapped("training.dmd.div_loss.*", f"{_NO_TERM} (diversity)"),
    Unmapped("training.dmd.fake_real.*", f"{_NO_TERM} (fake score on real data)"),
    Unmapped("training.dmd.ida.*", "see training.dmd.ida.enabled"),
    Unmapped("training.dmd.cdm.*", f"{_NO_TERM} (CDM)"),
    Unmapped("training.dmd.random_schedule.*", "the steps are fixed"),
    Unmapped("training.dmd.renoise_*", _UNUSED),
    Unmapped("training.dmd.same_step_across_blocks", _UNUSED),
    Unmapped("training.dmd.context_noise", _UNUSED),
    Unmapped("training.dmd.image_sizes", _UNUSED),
    Unmapped("training.*.negative_prompt", "LightX2V's trainers for Wan take one of their own"),
    Unmapped("training.*.cfg_norm", "guidance is not normalised here", ("none", None)),
    Unmapped("training.save_consolidated_*", "`lightx2v-sgmd export` writes weights of a run"),
    Unmapped("training.consolidated_weights_name", "`lightx2v-sgmd export` names the files"),
    Unmapped("training.*generator_ckpt", "the student starts from the teacher's weights", (None,)),
    Unmapped("training.student.checkpoint_path", "the student starts from the teacher", (None,)),
    Unmapped("training.student.checkpoint_strict", "the student starts from the teacher"),
    Unmapped("model.student.checkpoint_path", "the student starts from the teacher", (None,)),
    Unmapped("model.student.checkpoint_strict", "the student starts from the teacher"),
    Unmapped("model.causal", "the students here see all frames at once", (False,)),
    Unmapped("model.*", _LOADING),
    Unmapped("distributed.backend", "NCCL on GPUs and Gloo on CPUs are taken"),
    Unmapped("distributed.fsdp2.size", "weights are sharded over all ranks"),
    Unmapped("distributed.fsdp2.reshard_after_forward.*", "ZeRO-3 releases blocks by itself"),
    Unmapped("distributed.fsdp2.mixed_precision.*", "precision follows model.running_dtype"),
    Unmapped("distributed.*", "ZeRO-3 and the launcher's environment stand for it"),
    Unmapped("data.train.shuffle", "prompts are always shuffled, by train.seed", (True,)),
    Unmapped("data.train.drop_last", "every batch is whole", (True,)),
    Unmapped("data.train.prompt_dropout_rate", "no prompt is dropped", (0,)),
    Unmapped("data.train.max_samples", "all prompts of the file are used", (None,)),
    Unmapped("data.train.dataset_repeat", "prompts are drawn again when all were used"),
    Unmapped("data.train.*", _DATA),
    Unmapped("data.val.*", _SAMPLES),
    Unmapped("inference.*", _SAMPLES),
    Unmapped("logging.*", "metrics.jsonl has every iteration, output.trackers name what shows it"),
)
"""Keys that are not mapped, and why; the first pattern that fits a key counts."""


def unmapped(key: str) -> Unmapped | None:
    """The reason why nothing here stands for a key; None if the key is mapped or unknown."""
    if key in MAPPED:
        return None
    return next((entry for entry in UNMAPPED if fnmatchcase(key, entry.pattern)), None)
