"""Mutate files of every format that questlm reads, read them under limits, and judge what comes of it."""
