"""Native CPU kernels (placeholder until built in the next commit)."""


def unavailable() -> str | None:
    return "not built"
