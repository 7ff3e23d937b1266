"""File formats: tensors, checkpoints, manifests, prompts, videos."""
