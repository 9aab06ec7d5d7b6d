"""Layers that compute with codes.

Linear layers, linear layers of two branches, norms and activations that hand quantised rows to the layers behind them,
and embeddings in the form that ships.
"""
