"""LoRA files of Wan models, whoever wrote them."""
