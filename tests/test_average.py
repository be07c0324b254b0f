"""The moving average of the weights, against its own recurrence in float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from facetrain.train.average import Average


def test_it_is_the_recurrence() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = Average(network, decay=0.7)
    expected = {name: value.double().numpy() for name, value in network.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += torch.randn(parameter.shape, generator=generator)
        network(torch.randn(8, 3, generator=generator))  # moves the running statistics
        average.update(network, step)
        decay = min(0.7, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double().numpy()
    for name, value in average.network.state_dict().items():
        if value.is_floating_point():
            np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-5, atol=1e-6)
    assert int(average.network[1].num_batches_tracked) == 12
    assert not any(p.requires_grad for p in average.network.parameters())


def test_the_network_itself_is_left_alone() -> None:
    network = nn.Linear(2, 2)
    average = Average(network, decay=0.5)
    before = [p.clone() for p in network.parameters()]
    average.update(network, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(a is not b for a, b in zip(network.parameters(), average.network.parameters(), strict=True))


def test_a_weight_under_two_names_is_averaged_once() -> None:
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    network[1].weight = network[0].weight
    average = Average(network, decay=0.5)
    before = network[0].weight.detach().clone()
    with torch.no_grad():
        network[0].weight += 1
    average.update(network, 1000)
    assert average.network[0].weight is average.network[1].weight
    torch.testing.assert_close(average.network[0].weight.detach(), before + 0.5)
