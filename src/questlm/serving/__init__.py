"""Serve a packed model over HTTP, by the interface of OpenAI. Needs the extra `serve`."""
