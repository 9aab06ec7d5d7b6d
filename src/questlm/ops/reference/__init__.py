"""The definition of correct: every operation in plain PyTorch, for any device and dtype, compiled or not."""
