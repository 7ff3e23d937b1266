"""Text embeddings of prompts, kept between runs."""
