"""LoRA files of all families, whoever wrote them."""
