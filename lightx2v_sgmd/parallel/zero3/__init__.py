"""DeepSpeed ZeRO-3: networks, gradients and optimizer state sharded over all ranks."""
