"""Layers that compute with codes.

linear       FakeQuantLinear, a linear layer that trains through codes
mode         how such a layer computes at the moment
branches     BranchedLinear, a linear layer of which a small part has 8 bits
corrections  what a layer may have beside its quantised product: centring, a diagonal
fused        norms and activations that quantise their output for the linear layers behind them
stored       embedding and output head, rounded as an artifact stores them
"""
