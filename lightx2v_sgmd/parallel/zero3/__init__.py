"""The ZeRO-3 strategy on DeepSpeed."""
