"""`quest serve`: a packed model over HTTP."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from questlm.cli.options import CacheDtype
from questlm.errors import ConfigError, MissingDependencyError
from questlm.humanize import bytes_text
from questlm.terminal import say

__all__ = ["serve"]

_LEAST_KEY = 8
_KEY_VARIABLE = "QUESTLM_API_KEY"

Host = Annotated[str, typer.Option(help="Address to listen on; others than loopback are open to the network.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65_535)]
Key = Annotated[
    str | None,
    typer.Option(
        help="Key that clients must name. Better in the environment: a command line can be read by others.",
        envvar=_KEY_VARIABLE,
        show_envvar=True,
    ),
]
Texts = Annotated[int, typer.Option(help="Texts generated at once.")]
Context = Annotated[int, typer.Option(help="Most tokens of a prompt and its text together.")]
Queue = Annotated[int, typer.Option(help="Texts that may wait for a place; more are refused with 429.")]
Shutdown = Annotated[float, typer.Option(help="How long running requests may take to end after SIGTERM or Ctrl-C.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda.")]
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="In what to compute.")]
KeptIn = Annotated[CacheDtype | None, typer.Option(help="In what keys and values are kept [default: as computed].")]
Weights = Annotated[Literal["auto", "packed"], typer.Option(help="In memory, as in quest generate.")]


def serve(
    artifact: Annotated[Path, typer.Argument(help="Artifact, made by quest pack: a folder or one file.")],
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: Key = None,
    sequences: Texts = 8,
    context: Context = 2048,
    queue: Queue = 64,
    shutdown_seconds: Shutdown = 30.0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    cache_dtype: KeptIn = None,
    weights: Weights = "auto",
) -> None:
    """Answer HTTP requests by the interface of OpenAI: /v1/completions, /v1/chat/completions, /v1/models.

    A page at / tries the model in a browser; /health and /metrics (Prometheus) are for whoever looks after it.

    Examples:

        quest serve model/

        quest serve model/ --port 9000 --sequences 16 --context 1024

        QUESTLM_API_KEY=... quest serve model/ --host 0.0.0.0
    """
    for package in ("starlette", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "serve", "quest serve")
    if api_key is not None and not (len(api_key) >= _LEAST_KEY and api_key.isascii() and api_key.isprintable()):
        raise ConfigError(f"the key needs at least {_LEAST_KEY} printable ASCII characters; give a longer --api-key")
    if api_key is None and os.environ.get(_KEY_VARIABLE) == "":  # as of `$(cat FILE)` where there is no such file
        raise ConfigError(f"{_KEY_VARIABLE} is empty, so nobody would need a key; give it one, or unset it")
    import torch

    from questlm.inference import load
    from questlm.serving import Limits, Server, Service, is_loopback, listen

    limits = Limits(sequences=sequences, context=context, queue=queue, shutdown_seconds=shutdown_seconds)
    with listen(host, port, limits.client_seconds) as listener:  # before the model is read: an address may be taken
        kept = None if cache_dtype is None else getattr(torch, cache_dtype)
        model = load(artifact, device, getattr(torch, dtype), kept, weights)
        server = Server(Service(model, artifact.resolve().name, limits), listener, host, api_key)
        say(f"weights take {bytes_text(model.weight_bytes)} in memory", err=True)
        if api_key is None and not is_loopback(host):
            say(f"warning: anyone who reaches {host} can use this server; --api-key asks for a key", err=True)
        address = f"[{host}]" if ":" in host else host
        say(f"serving {server.name} at http://{address}:{listener.getsockname()[1]}/", err=True)
        server.run()
