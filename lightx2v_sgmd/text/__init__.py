"""Text embeddings of prompts: their encoding, their cache and the encoder's fingerprint."""
