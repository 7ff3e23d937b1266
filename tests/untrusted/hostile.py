"""Hostile model folders: what a stranger might put into one, each kind as one change of a good one.

The folders here are Wan2.1's, runs, exports and single files; ``hostile_families`` has the others.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile

from tests.untrusted.damage import (
    TOKENIZER,
    TOKENS,
    RunsCode,
    both,
    charsmap,
    deeply,
    described,
    header,
    instead,
    link,
    many_tensors,
    put,
    shortened,
    step,
    torch_archive,
    with_metadata,
    write,
)
from tests.untrusted.hostile_families import FAMILIES
from tests.untrusted.kinds import AUTO_MAP, DEEP, TOKENIZER_MAP, kinds

TRANSFORMER, VAE, TEXT = (f"{p}/config.json" for p in ("transformer", "vae", "text_encoder"))
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"
CONFIGS = kinds(
    "teacher",
    True,
    auto_map=put(TRANSFORMER, auto_map=AUTO_MAP),
    class_unknown=put(TRANSFORMER, _class_name="evil.Evil"),
    class_a_list=put(TRANSFORMER, _class_name=["WanTransformer3DModel"]),
    layers_1e9=put(TRANSFORMER, num_layers=10**9),
    layers_negative=put(TRANSFORMER, num_layers=-1),
    heads_zero=put(TRANSFORMER, num_attention_heads=0),
    heads_true=put(TRANSFORMER, num_attention_heads=True),
    head_dim_text=put(TRANSFORMER, attention_head_dim="12"),
    rope_1e9=put(TRANSFORMER, rope_max_seq_len=10**9),
    patch_nested=put(TRANSFORMER, patch_size=[[1], [2], [2]]),
    patch_endless=put(TRANSFORMER, patch_size=[1] * 50_000),
    eps_nan=write(TRANSFORMER, '{"_class_name": "WanTransformer3DModel", "eps": NaN}'),
    qk_norm=put(TRANSFORMER, qk_norm="evil.Evil"),
    image_model=put(TRANSFORMER, image_dim=1280),
    json_deep=write(TRANSFORMER, DEEP),
    json_deep_objects=write(TRANSFORMER, '{"a":' * 100_000),
    json_large=write(TRANSFORMER, '{"a": "' + "x" * 2_000_000 + '"}'),
    json_values=write(TRANSFORMER, '{"a": [' + "0," * 400_000 + "0]}"),
    json_digits=write(TRANSFORMER, '{"num_layers": ' + "9" * 5_000 + "}"),
    json_bytes=write(TRANSFORMER, b'{"a": "\xff"}'),
    json_a_list=write(TRANSFORMER, "[]"),
    json_empty=write(TRANSFORMER, ""),
    json_surrogate=write(TRANSFORMER, '{"_class_name": "\\ud800"}'),
    program_named=put(TRANSFORMER, custom_module="evil.py"),
    vae_auto_map=put(VAE, auto_map=AUTO_MAP),
    vae_class=put(VAE, _class_name="evil.Evil"),
    vae_base_dim_1e9=put(VAE, base_dim=10**9),
    vae_dims_1e9=put(VAE, dim_mult=[1, 10**9]),
    vae_dims_many=put(VAE, dim_mult=[1] * 50_000),
    vae_blocks_1e8=put(VAE, num_res_blocks=10**8),
    vae_mean_short=put(VAE, latents_mean=[0.0]),
    vae_std_zero=put(VAE, latents_std=[0.0] * 4),
    vae_scales=write(VAE, '{"_class_name": "AutoencoderKLWan", "attn_scales": [Infinity]}'),
    vae_factor_zero=put(VAE, scale_factor_spatial=0),
    vae_json_deep=write(VAE, DEEP),
    text_auto_map=put(TEXT, auto_map=AUTO_MAP),
    text_architecture=put(TEXT, architectures=["EvilModel"]),
    text_kind=put(TEXT, model_type="evil"),
    text_layers_1e8=put(TEXT, num_layers=10**8),
    text_vocabulary_1e10=put(TEXT, vocab_size=10**10),
    text_width_and_vocabulary=put(TEXT, vocab_size=2**20, d_model=2**14, d_ff=2**17),
    text_buckets_zero=put(TEXT, relative_attention_num_buckets=0),
    text_distance=put(TEXT, relative_attention_max_distance=4),
    text_activation=put(TEXT, feed_forward_proj="gated-__import__"),
    text_json_deep=write(TEXT, DEEP),
    index_library=put("model_index.json", vae=["evil", "Evil"]),
    index_pipeline=put("model_index.json", custom_pipeline="evil.py"),
    index_program=put("model_index.json", scheduler=["diffusers", "evil.py"]),
    index_deep=write("model_index.json", DEEP),
    video_huge=put("video.json", height=32, width=32, num_frames=10**12, fps=8),
    video_text=put("video.json", height=32, width=32, num_frames=9, fps="evil.py"),
    video_missing=put("video.json", height=32),
    video_deep=write("video.json", DEEP),
    scheduler_auto_map=put("scheduler/scheduler_config.json", auto_map=AUTO_MAP),
    scheduler_shift=put("scheduler/scheduler_config.json", shift=1e308),
    scheduler_class=put("scheduler/scheduler_config.json", _class_name="os.system"),
)
TOKENIZERS = kinds(
    "teacher",
    True,
    tokens_auto_map=put(TOKENS, auto_map=TOKENIZER_MAP),
    tokens_auto_map_and_class=put(TOKENS, auto_map=TOKENIZER_MAP, tokenizer_class="Evil"),
    tokens_class=put(TOKENS, tokenizer_class="Evil"),
    tokens_module=put(TOKENS, tokenizer_class="transformers_modules.evil.Evil"),
    tokens_no_class=put(TOKENS, tokenizer_class=None),
    tokens_extra_1e9=put(TOKENS, tokenizer_class="T5Tokenizer", extra_ids=10**9),
    tokens_pad_an_object=put(TOKENS, pad_token={"content": {"a": 1}}),
    tokens_added_many=put(
        TOKENS, added_tokens_decoder={str(i): {"content": f"t{i}"} for i in range(20_000)}
    ),
    tokens_json_deep=write(TOKENS, DEEP),
    tokens_map_evil=write("tokenizer/special_tokens_map.json", '{"pad_token": {"content": [1]}}'),
    tokens_added_negative=write("tokenizer/added_tokens.json", '{"x": -1}'),
    tokenizer_missing=lambda folder: (folder / TOKENIZER).unlink(),
    tokenizer_deep=write(TOKENIZER, DEEP),
    tokenizer_values=write(TOKENIZER, '{"model": [' + "[]," * 3_500_000 + "0]}"),
    tokenizer_large=write(TOKENIZER, b" " * 50_000_000),
    tokenizer_empty=write(TOKENIZER, "{}"),
    tokenizer_model=deeply(TOKENIZER, "model", "type", value="Evil"),
    tokenizer_vocabulary_empty=deeply(TOKENIZER, "model", "vocab", value=[]),
    tokenizer_vocabulary_rows=deeply(TOKENIZER, "model", "vocab", value=[[1, "a"]]),
    tokenizer_vocabulary_score=deeply(TOKENIZER, "model", "vocab", value=[["a", 1e300]]),
    tokenizer_twice=write(TOKENIZER, '{"model": {"type": "BPE"}, "model": {"type": "Evil"}}'),
    tokenizer_unknown_id=deeply(TOKENIZER, "model", "unk_id", value=10**9),
    tokenizer_dropout=deeply(TOKENIZER, "model", "dropout", value=0.5),
    tokenizer_regex=step("normalizer", type="Replace", pattern={"Regex": "(a+)+$"}, content=" "),
    tokenizer_split_regex=step(
        "pre_tokenizer",
        type="Split",
        pattern={"Regex": "(.*)*x"},
        behavior="Isolated",
        invert=False,
    ),
    tokenizer_doubling=step(
        "normalizer",
        type="Sequence",
        normalizers=[{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
    ),
    tokenizer_long_content=step(
        "normalizer", type="Replace", pattern={"String": "a"}, content="a" * 10**6
    ),
    tokenizer_nested=step(
        "normalizer",
        type="Sequence",
        normalizers=[{"type": "Sequence", "normalizers": [{"type": "Sequence"}] * 9}] * 9,
    ),
    tokenizer_step=step("normalizer", type="Evil"),
    tokenizer_padding=deeply(TOKENIZER, "padding", value={"strategy": {"Fixed": 10**12}}),
    tokenizer_template=step(
        "post_processor",
        type="TemplateProcessing",
        single=[{"SpecialToken": {"id": "</s>", "type_id": 0}}],
        pair=[],
        special_tokens={"</s>": {"id": "</s>", "ids": [1] * 90_000, "tokens": ["</s>"] * 90_000}},
    ),
    tokenizer_charsmap_cut=charsmap(b"\xff\xff\xff\x7f" + b"a" * 100),
    tokenizer_charsmap_large=charsmap(struct.pack("<I", 8) + b"\0" * 8 + b"a" * 10**6),
    tokenizer_charsmap_text=step("normalizer", type="Precompiled", precompiled_charsmap="%%%"),
    tokenizer_added_far=deeply(
        TOKENIZER, "added_tokens", value=[{"id": 2**40, "content": "x", "special": True}]
    ),
    tokenizer_beyond_the_encoder=put(TEXT, vocab_size=2),
    tokenizer_token_beyond_the_encoder=deeply(
        TOKENIZER,
        "added_tokens",
        value=[
            {
                "id": 2**19,
                "content": "circle",
                "special": False,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
        ],
    ),
    sentencepiece_garbage=both(
        lambda folder: (folder / TOKENIZER).unlink(),
        write("tokenizer/spiece.model", os.urandom(2_000)),
        put(TOKENS, tokenizer_class="T5Tokenizer"),
    ),
)
WEIGHT_FILES = kinds(
    "teacher",
    True,
    header_many=many_tensors(WEIGHTS, 200_000),
    header_1500000=many_tensors(WEIGHTS, 1_500_000),
    header_length=write(WEIGHTS, b"\xff" * 7 + b"\x7f" + b"{}"),
    header_deep=header(WEIGHTS, DEEP.encode()),
    header_twice=header(
        WEIGHTS,
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"1234",
    ),
    header_overlap=header(
        WEIGHTS,
        {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"},
        b"1234",
    ),
    header_name=header(
        WEIGHTS, {"../../x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"1234"
    ),
    header_shape=header(
        WEIGHTS, {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 0]}}
    ),
    header_offsets=header(
        WEIGHTS, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [2**70, 2**70 + 4]}}
    ),
    schedule_deep=with_metadata(WEIGHTS, "lightx2v_sgmd", DEEP),
    schedule_long=with_metadata(
        WEIGHTS, "lightx2v_sgmd", '{"schedule": {"base": [' + "1," * 40_000 + "1]}}"
    ),
    index_outside=write(INDEX, '{"weight_map": {"a": "../../evil.safetensors"}}'),
    index_nested=write(INDEX, DEEP),
    index_numbers=write(INDEX, '{"weight_map": {"a": 1, "b": []}}'),
    index_values=write(INDEX, '{"weight_map": {' + '"a": "b",' * 400_000 + '"a": "b"}}'),
    pickle_in_its_place=instead(
        WEIGHTS, "transformer/diffusion_pytorch_model.bin", pickle.dumps(RunsCode())
    ),
    pickle_with_its_name=write(WEIGHTS, torch_archive()),
    linked_outside=link(WEIGHTS, "/etc/passwd"),
    linked_to_itself=link(WEIGHTS, "diffusion_pytorch_model.safetensors"),
    config_linked=link(TRANSFORMER, "/etc/passwd"),
    config_is_a_device=link("vae/config.json", "/dev/zero"),
)
HARMLESS = kinds(
    "teacher",
    False,
    text_kernel=put(TEXT, _attn_implementation="evil/kernels", attn_implementation="evil/kernels"),
    text_quantizer=put(TEXT, quantization_config={"quant_method": "bitsandbytes"}),
    text_weights=put(TEXT, transformers_weights="../../evil.safetensors"),
    text_adapter=write(
        "text_encoder/adapter_config.json", '{"base_model_name_or_path": "evil/evil"}'
    ),
    tokens_file=put(TOKENS, tokenizer_file="/etc/passwd", vocab_file="/etc/passwd"),
    tokens_gguf=put(TOKENS, gguf_file="/etc/passwd"),
    tokens_inputs=put(TOKENS, init_inputs=[{"a": 1}] * 10),
    tokens_template=put(TOKENS, chat_template="{{ cycler.__init__.__globals__.os.system('x') }}"),
    tokens_config=write("tokenizer/config.json", json.dumps({"auto_map": AUTO_MAP})),
    root_config=write("config.json", json.dumps({"auto_map": AUTO_MAP})),
)
ORIGINAL = kinds(
    "original",
    True,
    code=write("diffusion_pytorch_model.pth", torch_archive()),
    legacy_pickle=write("diffusion_pytorch_model.pth", pickle.dumps({"a": RunsCode()})),
    bomb=write("diffusion_pytorch_model.pth", torch_archive(zipfile.ZIP_DEFLATED, 100_000_000)),
    vae_code=write("Wan2.1_VAE.pth", torch_archive()),
    text_code=write("models_t5_umt5-xxl-enc-bf16.pth", torch_archive()),
    auto_map=put("config.json", auto_map=AUTO_MAP),
    width_1e12=put("config.json", dim=10**12),
    heads_text=put("config.json", num_heads="4"),
    unknown_key=put("config.json", evil=1),
    tokens=put("google/umt5-xxl/tokenizer_config.json", auto_map=TOKENIZER_MAP),
)
VISION = kinds(
    "vision",
    True,
    auto_map=put("config.json", auto_map=AUTO_MAP, model_type="evil"),
    auto_map_alone=put("config.json", auto_map=AUTO_MAP),
    kind=put("config.json", model_type="evil"),
    kind_that_downloads=put("config.json", model_type="timm_wrapper", architecture="evil/evil"),
    layers_1e9=put("config.json", num_hidden_layers=10**9),
    image_1e9=put("config.json", image_size=10**9),
    activation=put("config.json", hidden_act="evil"),
    deep=write("config.json", DEEP),
    linked=link("preprocessor_config.json", "/etc/passwd"),
    architecture=put("config.json", architectures=["../evil"]),
    missing_weights=header(
        "model.safetensors", {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"1234"
    ),
    pickle=instead("model.safetensors", "pytorch_model.bin", torch_archive()),
    mean=write("preprocessor_config.json", '{"image_mean": ["a"]}'),
    mean_deep=write("preprocessor_config.json", DEEP),
) + kinds(
    "vision",
    False,
    adapter=write("adapter_config.json", '{"base_model_name_or_path": "evil/evil"}'),
    kernel=put("config.json", _attn_implementation="evil/kernels"),
    quantizer=put("config.json", quantization_config={"quant_method": "bitsandbytes"}),
    weights=put("config.json", transformers_weights="../../evil.safetensors"),
)
MANIFEST = "lightx2v_sgmd.json"


def _nine_times(name: str) -> str:
    return f"{name}: &{name} [{','.join(['*' + chr(ord(name) - 1)] * 9)}]\n"


EXPORTS = kinds(
    "export",
    True,
    deep=write(MANIFEST, DEEP),
    a_list=write(MANIFEST, "[]"),
    digits=put(MANIFEST, step=10**30, guidance_scale="9" * 5_000),
    outside=deeply(MANIFEST, "sha256", value={"../../etc/passwd": "0" * 64}),
    absolute=deeply(MANIFEST, "sha256", value={"/etc/passwd": "0" * 64}),
    base_long=deeply(MANIFEST, "schedule", "base", value=[1.0] * 100_000),
    base_nested=deeply(MANIFEST, "schedule", "base", value=[[1000]]),
    video_1e300=put(MANIFEST, video={"height": 1e300, "width": 1, "num_frames": 1, "fps": 1}),
    format_evil=put(MANIFEST, format="evil"),
    job_bomb=write(
        "job.yaml", "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(map(_nine_times, "bcdefghi"))
    ),
    job_object=write("job.yaml", "teacher: !!python/object/apply:os.system ['touch executed']\n"),
    job_base=write("job.yaml", "teacher: {path: sprites, base: [1]}\n"),
    teacher_elsewhere=put(MANIFEST, teacher="\0", format="lora"),
    transformer_code=put(TRANSFORMER, auto_map=AUTO_MAP),
    tokens_code=put(TOKENS, auto_map=TOKENIZER_MAP),
)
LORAS = kinds(
    "lora",
    True,
    deep=with_metadata("x.safetensors", "lora_adapter_metadata", DEEP),
    rank=with_metadata(
        "x.safetensors",
        "lora_adapter_metadata",
        '{"transformer.r": 1000000000, "transformer.lora_alpha": 1}',
    ),
    expression=with_metadata(
        "x.safetensors",
        "lora_adapter_metadata",
        '{"transformer.r": 4, "transformer.lora_alpha": 4, '
        '"transformer.rank_pattern": {"(a+)+$": 4}}',
    ),
    target=with_metadata(
        "x.safetensors",
        "lora_adapter_metadata",
        '{"transformer.r": 4, "transformer.lora_alpha": 4, "transformer.target_modules": "(.*)*x"}',
    ),
    many=many_tensors("x.safetensors", 100_000),
    pickle=write("x.safetensors", torch_archive()),
)
CHECKPOINT = "checkpoints/step_000001"
RUNS = kinds(
    "run",
    True,
    manifest_deep=write(f"{CHECKPOINT}/manifest.json", DEEP),
    manifest_a_list=write(f"{CHECKPOINT}/manifest.json", "[]"),
    manifest_outside=put(
        f"{CHECKPOINT}/manifest.json", files={"../../x": {"size": 1, "sha256": "0" * 64}}
    ),
    trainer_deep=write(f"{CHECKPOINT}/trainer.json", DEEP),
    job_object=write(f"{CHECKPOINT}/job.yaml", "a: !!python/object/apply:os.system ['touch x']\n"),
    job_deep=write(f"{CHECKPOINT}/job.yaml", DEEP),
    header_many=many_tensors(f"{CHECKPOINT}/student.safetensors", 1_000_000),
    student_pickle=write(f"{CHECKPOINT}/student.safetensors", torch_archive()),
)
TORCH_SAVE = kinds(
    "torch_save",
    True,
    code=write("x.pt", torch_archive()),
    legacy=write("x.pt", pickle.dumps({"a": RunsCode()})),
    bomb=write("x.pt", torch_archive(zipfile.ZIP_DEFLATED, 100_000_000)),
    deep=write("x.pt", torch_archive(pickled=b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")),
    keys=write("x.pt", torch_archive(pickled=pickle.dumps({str(i): 0 for i in range(60_000)}, 2))),
    doubling=write(
        "x.pt", torch_archive(pickled=b"\x80\x02](" + b"0" * 10 + b"2" * 100_000 + b"e.")
    ),
    getter=write("x.pt", torch_archive(pickled=b"\x80\x02cbuiltins\ngetattr\n.")),
    endless=write("x.pt", torch_archive(pickled=b"\x80\x02]q\x00h\x00a.")),
    number=write("x.pt", torch_archive(pickled=b"\x80\x02\x8b\xff\xff\xff\x7f.")),
    cut=shortened("x.pt", 20_000),
    text=write("x.pt", "import os"),
    a_device=link("x.pt", "/dev/zero"),
)
SCALED = kinds(
    "scaled",
    True,
    scale_large=described("x.safetensors", ".weight_scale", shape=[2**40, 2**40]),
    scale_nested=described("x.safetensors", ".weight_scale", shape=[[1]]),
    scale_elsewhere=described("x.safetensors", ".weight_scale", data_offsets=[2**60, 2**60 + 4]),
    scale_of_bytes=described("x.safetensors", ".weight_scale", dtype="U8"),
    scale_unknown=described("x.safetensors", ".weight_scale", dtype="evil.Evil"),
    matrix_of_four_bits=described("x.safetensors", "ffn.0.weight", dtype="U8"),
    matrix_negative=described("x.safetensors", "ffn.0.weight", shape=[-1, 2]),
    many=many_tensors("x.safetensors", 100_000),
    cut=shortened("x.safetensors", 20_000),
    pickle=write("x.safetensors", torch_archive()),
)
KINDS = [
    *TORCH_SAVE,
    *SCALED,
    *RUNS,
    *CONFIGS,
    *TOKENIZERS,
    *WEIGHT_FILES,
    *HARMLESS,
    *ORIGINAL,
    *VISION,
    *EXPORTS,
    *LORAS,
    *FAMILIES,
]
