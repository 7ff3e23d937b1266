"""Every name of the published weights: diffusers' on the left, the original on the right.

``{n}`` stands for each layer. Transformer and VAE: as diffusers' own converters pair them.
"""

from __future__ import annotations

from transformers import UMT5Config

UMT5_XXL = UMT5Config(
    vocab_size=256384,
    d_model=4096,
    d_kv=64,
    d_ff=10240,
    num_layers=24,
    num_heads=64,
    relative_attention_num_buckets=32,
    feed_forward_proj="gated-gelu",
)


def _pairs(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


TRANSFORMER_NAMES = _pairs("""
scale_shift_table head.modulation
patch_embedding.weight patch_embedding.weight
patch_embedding.bias patch_embedding.bias
condition_embedder.time_embedder.linear_1.weight time_embedding.0.weight
condition_embedder.time_embedder.linear_1.bias time_embedding.0.bias
condition_embedder.time_embedder.linear_2.weight time_embedding.2.weight
condition_embedder.time_embedder.linear_2.bias time_embedding.2.bias
condition_embedder.time_proj.weight time_projection.1.weight
condition_embedder.time_proj.bias time_projection.1.bias
condition_embedder.text_embedder.linear_1.weight text_embedding.0.weight
condition_embedder.text_embedder.linear_1.bias text_embedding.0.bias
condition_embedder.text_embedder.linear_2.weight text_embedding.2.weight
condition_embedder.text_embedder.linear_2.bias text_embedding.2.bias
blocks.{n}.scale_shift_table blocks.{n}.modulation
blocks.{n}.attn1.to_q.weight blocks.{n}.self_attn.q.weight
blocks.{n}.attn1.to_q.bias blocks.{n}.self_attn.q.bias
blocks.{n}.attn1.to_k.weight blocks.{n}.self_attn.k.weight
blocks.{n}.attn1.to_k.bias blocks.{n}.self_attn.k.bias
blocks.{n}.attn1.to_v.weight blocks.{n}.self_attn.v.weight
blocks.{n}.attn1.to_v.bias blocks.{n}.self_attn.v.bias
blocks.{n}.attn1.to_out.0.weight blocks.{n}.self_attn.o.weight
blocks.{n}.attn1.to_out.0.bias blocks.{n}.self_attn.o.bias
blocks.{n}.attn1.norm_q.weight blocks.{n}.self_attn.norm_q.weight
blocks.{n}.attn1.norm_k.weight blocks.{n}.self_attn.norm_k.weight
blocks.{n}.attn2.to_q.weight blocks.{n}.cross_attn.q.weight
blocks.{n}.attn2.to_q.bias blocks.{n}.cross_attn.q.bias
blocks.{n}.attn2.to_k.weight blocks.{n}.cross_attn.k.weight
blocks.{n}.attn2.to_k.bias blocks.{n}.cross_attn.k.bias
blocks.{n}.attn2.to_v.weight blocks.{n}.cross_attn.v.weight
blocks.{n}.attn2.to_v.bias blocks.{n}.cross_attn.v.bias
blocks.{n}.attn2.to_out.0.weight blocks.{n}.cross_attn.o.weight
blocks.{n}.attn2.to_out.0.bias blocks.{n}.cross_attn.o.bias
blocks.{n}.attn2.norm_q.weight blocks.{n}.cross_attn.norm_q.weight
blocks.{n}.attn2.norm_k.weight blocks.{n}.cross_attn.norm_k.weight
blocks.{n}.norm2.weight blocks.{n}.norm3.weight
blocks.{n}.norm2.bias blocks.{n}.norm3.bias
blocks.{n}.ffn.net.0.proj.weight blocks.{n}.ffn.0.weight
blocks.{n}.ffn.net.0.proj.bias blocks.{n}.ffn.0.bias
blocks.{n}.ffn.net.2.weight blocks.{n}.ffn.2.weight
blocks.{n}.ffn.net.2.bias blocks.{n}.ffn.2.bias
proj_out.weight head.head.weight
proj_out.bias head.head.bias
""")

TEXT_ENCODER_NAMES = _pairs("""
shared.weight token_embedding.weight
encoder.final_layer_norm.weight norm.weight
encoder.block.{n}.layer.0.SelfAttention.q.weight blocks.{n}.attn.q.weight
encoder.block.{n}.layer.0.SelfAttention.k.weight blocks.{n}.attn.k.weight
encoder.block.{n}.layer.0.SelfAttention.v.weight blocks.{n}.attn.v.weight
encoder.block.{n}.layer.0.SelfAttention.o.weight blocks.{n}.attn.o.weight
encoder.block.{n}.layer.0.SelfAttention.relative_attention_bias.weight
  blocks.{n}.pos_embedding.embedding.weight
encoder.block.{n}.layer.0.layer_norm.weight blocks.{n}.norm1.weight
encoder.block.{n}.layer.1.DenseReluDense.wi_0.weight blocks.{n}.ffn.gate.0.weight
encoder.block.{n}.layer.1.DenseReluDense.wi_1.weight blocks.{n}.ffn.fc1.weight
encoder.block.{n}.layer.1.DenseReluDense.wo.weight blocks.{n}.ffn.fc2.weight
encoder.block.{n}.layer.1.layer_norm.weight blocks.{n}.norm2.weight
""")

VAE_NAMES = _pairs("""
encoder.conv_in.weight encoder.conv1.weight
encoder.conv_in.bias encoder.conv1.bias
encoder.down_blocks.0.norm1.gamma encoder.downsamples.0.residual.0.gamma
encoder.down_blocks.0.conv1.weight encoder.downsamples.0.residual.2.weight
encoder.down_blocks.0.conv1.bias encoder.downsamples.0.residual.2.bias
encoder.down_blocks.0.norm2.gamma encoder.downsamples.0.residual.3.gamma
encoder.down_blocks.0.conv2.weight encoder.downsamples.0.residual.6.weight
encoder.down_blocks.0.conv2.bias encoder.downsamples.0.residual.6.bias
encoder.down_blocks.1.norm1.gamma encoder.downsamples.1.residual.0.gamma
encoder.down_blocks.1.conv1.weight encoder.downsamples.1.residual.2.weight
encoder.down_blocks.1.conv1.bias encoder.downsamples.1.residual.2.bias
encoder.down_blocks.1.norm2.gamma encoder.downsamples.1.residual.3.gamma
encoder.down_blocks.1.conv2.weight encoder.downsamples.1.residual.6.weight
encoder.down_blocks.1.conv2.bias encoder.downsamples.1.residual.6.bias
encoder.down_blocks.2.resample.1.weight encoder.downsamples.2.resample.1.weight
encoder.down_blocks.2.resample.1.bias encoder.downsamples.2.resample.1.bias
encoder.down_blocks.3.norm1.gamma encoder.downsamples.3.residual.0.gamma
encoder.down_blocks.3.conv1.weight encoder.downsamples.3.residual.2.weight
encoder.down_blocks.3.conv1.bias encoder.downsamples.3.residual.2.bias
encoder.down_blocks.3.norm2.gamma encoder.downsamples.3.residual.3.gamma
encoder.down_blocks.3.conv2.weight encoder.downsamples.3.residual.6.weight
encoder.down_blocks.3.conv2.bias encoder.downsamples.3.residual.6.bias
encoder.down_blocks.3.conv_shortcut.weight encoder.downsamples.3.shortcut.weight
encoder.down_blocks.3.conv_shortcut.bias encoder.downsamples.3.shortcut.bias
encoder.down_blocks.4.norm1.gamma encoder.downsamples.4.residual.0.gamma
encoder.down_blocks.4.conv1.weight encoder.downsamples.4.residual.2.weight
encoder.down_blocks.4.conv1.bias encoder.downsamples.4.residual.2.bias
encoder.down_blocks.4.norm2.gamma encoder.downsamples.4.residual.3.gamma
encoder.down_blocks.4.conv2.weight encoder.downsamples.4.residual.6.weight
encoder.down_blocks.4.conv2.bias encoder.downsamples.4.residual.6.bias
encoder.down_blocks.5.resample.1.weight encoder.downsamples.5.resample.1.weight
encoder.down_blocks.5.resample.1.bias encoder.downsamples.5.resample.1.bias
encoder.down_blocks.5.time_conv.weight encoder.downsamples.5.time_conv.weight
encoder.down_blocks.5.time_conv.bias encoder.downsamples.5.time_conv.bias
encoder.down_blocks.6.norm1.gamma encoder.downsamples.6.residual.0.gamma
encoder.down_blocks.6.conv1.weight encoder.downsamples.6.residual.2.weight
encoder.down_blocks.6.conv1.bias encoder.downsamples.6.residual.2.bias
encoder.down_blocks.6.norm2.gamma encoder.downsamples.6.residual.3.gamma
encoder.down_blocks.6.conv2.weight encoder.downsamples.6.residual.6.weight
encoder.down_blocks.6.conv2.bias encoder.downsamples.6.residual.6.bias
encoder.down_blocks.6.conv_shortcut.weight encoder.downsamples.6.shortcut.weight
encoder.down_blocks.6.conv_shortcut.bias encoder.downsamples.6.shortcut.bias
encoder.down_blocks.7.norm1.gamma encoder.downsamples.7.residual.0.gamma
encoder.down_blocks.7.conv1.weight encoder.downsamples.7.residual.2.weight
encoder.down_blocks.7.conv1.bias encoder.downsamples.7.residual.2.bias
encoder.down_blocks.7.norm2.gamma encoder.downsamples.7.residual.3.gamma
encoder.down_blocks.7.conv2.weight encoder.downsamples.7.residual.6.weight
encoder.down_blocks.7.conv2.bias encoder.downsamples.7.residual.6.bias
encoder.down_blocks.8.resample.1.weight encoder.downsamples.8.resample.1.weight
encoder.down_blocks.8.resample.1.bias encoder.downsamples.8.resample.1.bias
encoder.down_blocks.8.time_conv.weight encoder.downsamples.8.time_conv.weight
encoder.down_blocks.8.time_conv.bias encoder.downsamples.8.time_conv.bias
encoder.down_blocks.9.norm1.gamma encoder.downsamples.9.residual.0.gamma
encoder.down_blocks.9.conv1.weight encoder.downsamples.9.residual.2.weight
encoder.down_blocks.9.conv1.bias encoder.downsamples.9.residual.2.bias
encoder.down_blocks.9.norm2.gamma encoder.downsamples.9.residual.3.gamma
encoder.down_blocks.9.conv2.weight encoder.downsamples.9.residual.6.weight
encoder.down_blocks.9.conv2.bias encoder.downsamples.9.residual.6.bias
encoder.down_blocks.10.norm1.gamma encoder.downsamples.10.residual.0.gamma
encoder.down_blocks.10.conv1.weight encoder.downsamples.10.residual.2.weight
encoder.down_blocks.10.conv1.bias encoder.downsamples.10.residual.2.bias
encoder.down_blocks.10.norm2.gamma encoder.downsamples.10.residual.3.gamma
encoder.down_blocks.10.conv2.weight encoder.downsamples.10.residual.6.weight
encoder.down_blocks.10.conv2.bias encoder.downsamples.10.residual.6.bias
encoder.mid_block.attentions.0.norm.gamma encoder.middle.1.norm.gamma
encoder.mid_block.attentions.0.to_qkv.weight encoder.middle.1.to_qkv.weight
encoder.mid_block.attentions.0.to_qkv.bias encoder.middle.1.to_qkv.bias
encoder.mid_block.attentions.0.proj.weight encoder.middle.1.proj.weight
encoder.mid_block.attentions.0.proj.bias encoder.middle.1.proj.bias
encoder.mid_block.resnets.0.norm1.gamma encoder.middle.0.residual.0.gamma
encoder.mid_block.resnets.0.conv1.weight encoder.middle.0.residual.2.weight
encoder.mid_block.resnets.0.conv1.bias encoder.middle.0.residual.2.bias
encoder.mid_block.resnets.0.norm2.gamma encoder.middle.0.residual.3.gamma
encoder.mid_block.resnets.0.conv2.weight encoder.middle.0.residual.6.weight
encoder.mid_block.resnets.0.conv2.bias encoder.middle.0.residual.6.bias
encoder.mid_block.resnets.1.norm1.gamma encoder.middle.2.residual.0.gamma
encoder.mid_block.resnets.1.conv1.weight encoder.middle.2.residual.2.weight
encoder.mid_block.resnets.1.conv1.bias encoder.middle.2.residual.2.bias
encoder.mid_block.resnets.1.norm2.gamma encoder.middle.2.residual.3.gamma
encoder.mid_block.resnets.1.conv2.weight encoder.middle.2.residual.6.weight
encoder.mid_block.resnets.1.conv2.bias encoder.middle.2.residual.6.bias
encoder.norm_out.gamma encoder.head.0.gamma
encoder.conv_out.weight encoder.head.2.weight
encoder.conv_out.bias encoder.head.2.bias
quant_conv.weight conv1.weight
quant_conv.bias conv1.bias
post_quant_conv.weight conv2.weight
post_quant_conv.bias conv2.bias
decoder.conv_in.weight decoder.conv1.weight
decoder.conv_in.bias decoder.conv1.bias
decoder.mid_block.attentions.0.norm.gamma decoder.middle.1.norm.gamma
decoder.mid_block.attentions.0.to_qkv.weight decoder.middle.1.to_qkv.weight
decoder.mid_block.attentions.0.to_qkv.bias decoder.middle.1.to_qkv.bias
decoder.mid_block.attentions.0.proj.weight decoder.middle.1.proj.weight
decoder.mid_block.attentions.0.proj.bias decoder.middle.1.proj.bias
decoder.mid_block.resnets.0.norm1.gamma decoder.middle.0.residual.0.gamma
decoder.mid_block.resnets.0.conv1.weight decoder.middle.0.residual.2.weight
decoder.mid_block.resnets.0.conv1.bias decoder.middle.0.residual.2.bias
decoder.mid_block.resnets.0.norm2.gamma decoder.middle.0.residual.3.gamma
decoder.mid_block.resnets.0.conv2.weight decoder.middle.0.residual.6.weight
decoder.mid_block.resnets.0.conv2.bias decoder.middle.0.residual.6.bias
decoder.mid_block.resnets.1.norm1.gamma decoder.middle.2.residual.0.gamma
decoder.mid_block.resnets.1.conv1.weight decoder.middle.2.residual.2.weight
decoder.mid_block.resnets.1.conv1.bias decoder.middle.2.residual.2.bias
decoder.mid_block.resnets.1.norm2.gamma decoder.middle.2.residual.3.gamma
decoder.mid_block.resnets.1.conv2.weight decoder.middle.2.residual.6.weight
decoder.mid_block.resnets.1.conv2.bias decoder.middle.2.residual.6.bias
decoder.up_blocks.0.resnets.0.norm1.gamma decoder.upsamples.0.residual.0.gamma
decoder.up_blocks.0.resnets.0.conv1.weight decoder.upsamples.0.residual.2.weight
decoder.up_blocks.0.resnets.0.conv1.bias decoder.upsamples.0.residual.2.bias
decoder.up_blocks.0.resnets.0.norm2.gamma decoder.upsamples.0.residual.3.gamma
decoder.up_blocks.0.resnets.0.conv2.weight decoder.upsamples.0.residual.6.weight
decoder.up_blocks.0.resnets.0.conv2.bias decoder.upsamples.0.residual.6.bias
decoder.up_blocks.0.resnets.1.norm1.gamma decoder.upsamples.1.residual.0.gamma
decoder.up_blocks.0.resnets.1.conv1.weight decoder.upsamples.1.residual.2.weight
decoder.up_blocks.0.resnets.1.conv1.bias decoder.upsamples.1.residual.2.bias
decoder.up_blocks.0.resnets.1.norm2.gamma decoder.upsamples.1.residual.3.gamma
decoder.up_blocks.0.resnets.1.conv2.weight decoder.upsamples.1.residual.6.weight
decoder.up_blocks.0.resnets.1.conv2.bias decoder.upsamples.1.residual.6.bias
decoder.up_blocks.0.resnets.2.norm1.gamma decoder.upsamples.2.residual.0.gamma
decoder.up_blocks.0.resnets.2.conv1.weight decoder.upsamples.2.residual.2.weight
decoder.up_blocks.0.resnets.2.conv1.bias decoder.upsamples.2.residual.2.bias
decoder.up_blocks.0.resnets.2.norm2.gamma decoder.upsamples.2.residual.3.gamma
decoder.up_blocks.0.resnets.2.conv2.weight decoder.upsamples.2.residual.6.weight
decoder.up_blocks.0.resnets.2.conv2.bias decoder.upsamples.2.residual.6.bias
decoder.up_blocks.0.upsamplers.0.resample.1.weight decoder.upsamples.3.resample.1.weight
decoder.up_blocks.0.upsamplers.0.resample.1.bias decoder.upsamples.3.resample.1.bias
decoder.up_blocks.0.upsamplers.0.time_conv.weight decoder.upsamples.3.time_conv.weight
decoder.up_blocks.0.upsamplers.0.time_conv.bias decoder.upsamples.3.time_conv.bias
decoder.up_blocks.1.resnets.0.norm1.gamma decoder.upsamples.4.residual.0.gamma
decoder.up_blocks.1.resnets.0.conv1.weight decoder.upsamples.4.residual.2.weight
decoder.up_blocks.1.resnets.0.conv1.bias decoder.upsamples.4.residual.2.bias
decoder.up_blocks.1.resnets.0.norm2.gamma decoder.upsamples.4.residual.3.gamma
decoder.up_blocks.1.resnets.0.conv2.weight decoder.upsamples.4.residual.6.weight
decoder.up_blocks.1.resnets.0.conv2.bias decoder.upsamples.4.residual.6.bias
decoder.up_blocks.1.resnets.0.conv_shortcut.weight decoder.upsamples.4.shortcut.weight
decoder.up_blocks.1.resnets.0.conv_shortcut.bias decoder.upsamples.4.shortcut.bias
decoder.up_blocks.1.resnets.1.norm1.gamma decoder.upsamples.5.residual.0.gamma
decoder.up_blocks.1.resnets.1.conv1.weight decoder.upsamples.5.residual.2.weight
decoder.up_blocks.1.resnets.1.conv1.bias decoder.upsamples.5.residual.2.bias
decoder.up_blocks.1.resnets.1.norm2.gamma decoder.upsamples.5.residual.3.gamma
decoder.up_blocks.1.resnets.1.conv2.weight decoder.upsamples.5.residual.6.weight
decoder.up_blocks.1.resnets.1.conv2.bias decoder.upsamples.5.residual.6.bias
decoder.up_blocks.1.resnets.2.norm1.gamma decoder.upsamples.6.residual.0.gamma
decoder.up_blocks.1.resnets.2.conv1.weight decoder.upsamples.6.residual.2.weight
decoder.up_blocks.1.resnets.2.conv1.bias decoder.upsamples.6.residual.2.bias
decoder.up_blocks.1.resnets.2.norm2.gamma decoder.upsamples.6.residual.3.gamma
decoder.up_blocks.1.resnets.2.conv2.weight decoder.upsamples.6.residual.6.weight
decoder.up_blocks.1.resnets.2.conv2.bias decoder.upsamples.6.residual.6.bias
decoder.up_blocks.1.upsamplers.0.resample.1.weight decoder.upsamples.7.resample.1.weight
decoder.up_blocks.1.upsamplers.0.resample.1.bias decoder.upsamples.7.resample.1.bias
decoder.up_blocks.1.upsamplers.0.time_conv.weight decoder.upsamples.7.time_conv.weight
decoder.up_blocks.1.upsamplers.0.time_conv.bias decoder.upsamples.7.time_conv.bias
decoder.up_blocks.2.resnets.0.norm1.gamma decoder.upsamples.8.residual.0.gamma
decoder.up_blocks.2.resnets.0.conv1.weight decoder.upsamples.8.residual.2.weight
decoder.up_blocks.2.resnets.0.conv1.bias decoder.upsamples.8.residual.2.bias
decoder.up_blocks.2.resnets.0.norm2.gamma decoder.upsamples.8.residual.3.gamma
decoder.up_blocks.2.resnets.0.conv2.weight decoder.upsamples.8.residual.6.weight
decoder.up_blocks.2.resnets.0.conv2.bias decoder.upsamples.8.residual.6.bias
decoder.up_blocks.2.resnets.1.norm1.gamma decoder.upsamples.9.residual.0.gamma
decoder.up_blocks.2.resnets.1.conv1.weight decoder.upsamples.9.residual.2.weight
decoder.up_blocks.2.resnets.1.conv1.bias decoder.upsamples.9.residual.2.bias
decoder.up_blocks.2.resnets.1.norm2.gamma decoder.upsamples.9.residual.3.gamma
decoder.up_blocks.2.resnets.1.conv2.weight decoder.upsamples.9.residual.6.weight
decoder.up_blocks.2.resnets.1.conv2.bias decoder.upsamples.9.residual.6.bias
decoder.up_blocks.2.resnets.2.norm1.gamma decoder.upsamples.10.residual.0.gamma
decoder.up_blocks.2.resnets.2.conv1.weight decoder.upsamples.10.residual.2.weight
decoder.up_blocks.2.resnets.2.conv1.bias decoder.upsamples.10.residual.2.bias
decoder.up_blocks.2.resnets.2.norm2.gamma decoder.upsamples.10.residual.3.gamma
decoder.up_blocks.2.resnets.2.conv2.weight decoder.upsamples.10.residual.6.weight
decoder.up_blocks.2.resnets.2.conv2.bias decoder.upsamples.10.residual.6.bias
decoder.up_blocks.2.upsamplers.0.resample.1.weight decoder.upsamples.11.resample.1.weight
decoder.up_blocks.2.upsamplers.0.resample.1.bias decoder.upsamples.11.resample.1.bias
decoder.up_blocks.3.resnets.0.norm1.gamma decoder.upsamples.12.residual.0.gamma
decoder.up_blocks.3.resnets.0.conv1.weight decoder.upsamples.12.residual.2.weight
decoder.up_blocks.3.resnets.0.conv1.bias decoder.upsamples.12.residual.2.bias
decoder.up_blocks.3.resnets.0.norm2.gamma decoder.upsamples.12.residual.3.gamma
decoder.up_blocks.3.resnets.0.conv2.weight decoder.upsamples.12.residual.6.weight
decoder.up_blocks.3.resnets.0.conv2.bias decoder.upsamples.12.residual.6.bias
decoder.up_blocks.3.resnets.1.norm1.gamma decoder.upsamples.13.residual.0.gamma
decoder.up_blocks.3.resnets.1.conv1.weight decoder.upsamples.13.residual.2.weight
decoder.up_blocks.3.resnets.1.conv1.bias decoder.upsamples.13.residual.2.bias
decoder.up_blocks.3.resnets.1.norm2.gamma decoder.upsamples.13.residual.3.gamma
decoder.up_blocks.3.resnets.1.conv2.weight decoder.upsamples.13.residual.6.weight
decoder.up_blocks.3.resnets.1.conv2.bias decoder.upsamples.13.residual.6.bias
decoder.up_blocks.3.resnets.2.norm1.gamma decoder.upsamples.14.residual.0.gamma
decoder.up_blocks.3.resnets.2.conv1.weight decoder.upsamples.14.residual.2.weight
decoder.up_blocks.3.resnets.2.conv1.bias decoder.upsamples.14.residual.2.bias
decoder.up_blocks.3.resnets.2.norm2.gamma decoder.upsamples.14.residual.3.gamma
decoder.up_blocks.3.resnets.2.conv2.weight decoder.upsamples.14.residual.6.weight
decoder.up_blocks.3.resnets.2.conv2.bias decoder.upsamples.14.residual.6.bias
decoder.norm_out.gamma decoder.head.0.gamma
decoder.conv_out.weight decoder.head.2.weight
decoder.conv_out.bias decoder.head.2.bias
""")
