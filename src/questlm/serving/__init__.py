"""Serve a packed model over HTTP, by the interface of OpenAI. Needs the extra `serve`."""

from questlm.serving.app import Service, create_app
from questlm.serving.limits import Limits
from questlm.serving.server import Server, is_loopback, listen

__all__ = ["Limits", "Server", "Service", "create_app", "is_loopback", "listen"]
