"""PyTorch checkpoints <-> ours: safe readers, one table of names, a streaming writer, verification (M 9)."""
