"""The few layers that the policies share, initialised as PPO's are: orthogonal, bias 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distrl.policies.precision import hidden_layers

convolve = nn.functional.conv2d
ROWS_OF_A_BATCH = 64  # below it, laying out the large layer's weights anew costs more than it gives

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def orthogonal(layer: nn.Linear | nn.Conv2d, gain: float = math.sqrt(2.0)) -> nn.Linear | nn.Conv2d:
    """Orthogonal weight (Saxe et al. 2013) of the given gain, bias 0: sqrt 2 hidden, 0.01 policy head, 1 value head."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(num_inputs: int, hidden_sizes: Sequence[int], activation: str) -> tuple[nn.Sequential, int]:
    """Hidden layers, each followed by its activation, and the width that comes out."""
    layers: list[nn.Module] = []
    for width in hidden_sizes:
        layers += [orthogonal(nn.Linear(num_inputs, width)), ACTIVATIONS[activation]()]
        num_inputs = width
    return nn.Sequential(*layers), num_inputs


class MLP(nn.Sequential):
    """Linear layers and activations in a row, called without `Module.__call__`'s cost at each: no hooks are run.

    A rollout's batch is small, so that cost is half of its forward.
    """

    precision = "fp32"

    def forward(self, x: Tensor) -> Tensor:
        if self.precision == "fp32":
            return self._through(x, len(self))
        with hidden_layers(self.precision, x.device):
            hidden = self._through(x, len(self) - 1)
        return self[-1](hidden.float())  # type: ignore[no-any-return]

    def _through(self, x: Tensor, num_layers: int) -> Tensor:
        for layer in islice(self._modules.values(), num_layers):
            if type(layer) is nn.Linear:
                x = nn.functional.linear(x, layer.weight, layer.bias)
            elif type(layer) is nn.Tanh:
                x = torch.tanh(x)
            else:
                x = layer(x)  # type: ignore[misc]
        return x


class Kernel(NamedTuple):
    """One convolution: channels that come out, size of the kernel, stride, padding."""

    channels: int
    size: int
    stride: int = 1
    padding: int = 0


def kernels_for(shape: tuple[int, int, int]) -> tuple[Kernel, ...]:
    """The Nature CNN from 36 pixels a side on (Mnih et al. 2015); below, kernels that leave something to see: from 16 on
    smaller ones with a stride, under that 3x3 ones that keep the size, as for boards."""
    side = min(shape[1:])
    if side >= 36:
        return Kernel(32, 8, 4), Kernel(64, 4, 2), Kernel(64, 3)
    if side >= 16:
        return Kernel(32, 4, 2), Kernel(64, 3, 2), Kernel(64, 3)
    return Kernel(32, 3, padding=1), Kernel(64, 3, padding=1)


class NatureCNN(nn.Module):
    """Convolutions (`kernels_for` the size) and a layer of 512, images [B, C, H, W] of 0..scale to [B, 512].

    Pixels are scaled to 0..1 in the first weights, not in the images, which are a thousand times as many.
    """

    width = 512

    def __init__(self, shape: tuple[int, int, int], scale: float = 255.0) -> None:
        super().__init__()
        self.scale, self.kernels = scale, kernels_for(shape)
        layers: list[nn.Module] = []
        channels = shape[0]
        for kernel in self.kernels:
            convolution = nn.Conv2d(channels, kernel.channels, kernel.size, kernel.stride, kernel.padding)
            layers += [orthogonal(convolution), nn.ReLU()]
            channels = kernel.channels
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            flat = self.convolutions(torch.zeros(1, *shape)).shape[1]
        self.linear = nn.Sequential(orthogonal(nn.Linear(flat, self.width)), nn.ReLU())

    def forward(self, pixels: Tensor) -> Tensor:
        first, *others = (layer for layer in self.convolutions if isinstance(layer, nn.Conv2d))
        weight = first.weight / self.scale if self.scale != 1.0 else first.weight
        kernel, *kernels = self.kernels
        x = convolve(pixels, weight, first.bias, kernel.stride, kernel.padding).relu_()
        for layer, kernel in zip(others, kernels, strict=True):
            x = convolve(x, layer.weight, layer.bias, kernel.stride, kernel.padding).relu_()
        large = self.linear[0]
        assert isinstance(large, nn.Linear)
        return _flat_linear(x, large).relu_()


def _flat_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """`layer` on the flattened images.

    On a CPU's larger float32 batches as a convolution over the whole image: oneDNN's, which needs no copy in channel
    order and runs at twice the rate of MKL's float32 product on AMD (measured: 13 % of a Nature CNN's update).
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or len(x) < ROWS_OF_A_BATCH:
        return nn.functional.linear(x.flatten(1), layer.weight, layer.bias)
    weight = layer.weight.view(len(layer.weight), *x.shape[1:])
    return convolve(x, weight, layer.bias).flatten(1)
