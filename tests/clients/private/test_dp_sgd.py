"""DP-SGD against slow loops over single samples."""

import math

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from torch import nn
from torch.nn import functional as F

from nmoe_flower.clients.private import Sampler, StepPlan, private_fit
from nmoe_flower.clients.private import dp_sgd as subject
from nmoe_flower.clients.private.grad_samples import SampleGradients
from nmoe_flower.errors import ConfigError
from nmoe_flower.losses import sample_spectral, unit_ball
from nmoe_flower.models import Classifier, Contrastive, Expert, Projector, build_extractor


def extractor(name="digits", norm="group-ws", size=8, channels=1, **options):
    torch.manual_seed(0)
    return build_extractor(name, in_channels=channels, image_size=size, norm=norm, **options)


def classifier(*args, **options):
    body = extractor(*args, **options)
    network = Classifier(body, Expert(body.latent_dim, 4, hidden=(16,)))
    return network.to(memory_format=torch.channels_last)


def slow_gradients(network, loss, rows):
    """One backward pass per sample."""
    found = []
    for i in range(rows):
        network.zero_grad()
        loss(i).backward()
        found.append([p.grad.clone() for p in network.parameters()])
    network.zero_grad(set_to_none=True)
    return [torch.stack(of_parameter) for of_parameter in zip(*found, strict=True)]


def assert_close(samples, slow):
    for p, (name, wanted) in zip(samples.parameters(), slow, strict=True):
        error = float((p.grad_sample - wanted).abs().max())
        assert error < 1e-5 * max(1.0, float(wanted.abs().max())), name
        assert float(wanted.abs().max()) > 0, name


NARROW = {"name": "narrow", "size": 16, "channels": 3, "widths": (8, 16, 16)}
RESNET = {"name": "resnet18", "size": 16, "channels": 3, "widths": (8, 8, 16, 16)}
NETWORKS = [
    {}, {"norm": "group"}, {"norm": "frozen"}, {"stem": "cifar", "pool": "multi"},
    {"stem": "cosine"}, RESNET, {"name": "linear"},
]  # fmt: skip


def problem(options):
    """A network that no zero hides anything of, and five images."""
    network = classifier(**options).train()
    for parameter in network.parameters():  # residual branches start at zero
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    size, channels = options.get("size", 8), options.get("channels", 1)
    images = torch.randn(5, channels, size, size).to(memory_format=torch.channels_last)
    return network, images, torch.tensor([0, 1, 2, 3, 1])


@pytest.mark.parametrize("options", [*NETWORKS, {**NARROW, "norm": "group"}], ids=str)
def test_gradients_of_samples_are_those_of_a_loop(options):
    network, images, labels = problem(options)
    if options.get("norm") == "group":  # in float32 a loop pools other maxima than a batch
        network.extractor.double()
        images = images.double()
    slow = slow_gradients(
        network, lambda i: F.cross_entropy(network(images[i : i + 1]), labels[i : i + 1]), 5
    )
    samples = SampleGradients(network)
    samples.backward(F.cross_entropy(network(images), labels, reduction="sum"))
    names = [name for name, _ in network.named_parameters()]
    assert_close(samples, list(zip(names, slow, strict=True)))
    samples.close()


@pytest.mark.parametrize("options", [*NETWORKS, NARROW], ids=str)
def test_they_add_up_to_the_gradient_of_the_batch_and_leave_no_trace(options):
    network, images, labels = problem(options)

    def gradients():
        network.zero_grad()
        F.cross_entropy(network(images), labels, reduction="sum").backward()
        return [p.grad.clone() for p in network.parameters()]

    wanted = gradients()
    samples = SampleGradients(network)
    samples.backward(F.cross_entropy(network(images), labels, reduction="sum"))
    for parameter, whole in zip(network.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad_sample.sum(dim=0), whole, atol=1e-5, rtol=1e-5)
    samples.close()
    assert all(p.grad is None for p in network.parameters())
    for whole, again in zip(wanted, gradients(), strict=True):
        assert torch.equal(whole, again)
    assert not any(hasattr(p, "grad_sample") for p in network.parameters())


@pytest.mark.parametrize("options", [*NETWORKS, {**NARROW, "norm": "group"}], ids=str)
def test_no_layer_made_of_one_of_torch_is_left_to_a_forward_pass_sample_by_sample(options):
    known, of_torch = SampleGradients.GRAD_SAMPLERS, GradSampleModule.GRAD_SAMPLERS
    for layer in problem(options)[0].modules():
        if any(kind in of_torch for kind in type(layer).__mro__):
            assert type(layer) in known


def test_gradients_of_layers_in_tiles_that_leave_out_a_row(monkeypatch):
    wide = {"name": "narrow", "size": 16, "channels": 3, "widths": (64, 256, 64)}
    network, images, labels = problem(wide)
    shapes = []
    layer = network.extractor.stages[1].conv1  # of 7 x 7 outputs, of which 6 x 6 are pooled
    layer.register_forward_hook(lambda _, __, maps: shapes.append(tuple(maps.shape[2:])))

    def of_samples():
        samples = SampleGradients(network)
        samples.backward(F.cross_entropy(network(images), labels, reduction="sum"))
        found = [parameter.grad_sample for parameter in network.parameters()]
        samples.close()
        return found

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    direct = of_samples()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    found = of_samples()
    assert shapes == [(7, 7), (6, 6)]
    for ours, right in zip(found, direct, strict=True):
        assert (ours - right).abs().max() < 1e-3 * right.abs().max()


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_both_views_of_a_sample_are_one_gradient(norm):
    body = extractor()
    network = Contrastive(body, Projector(body.latent_dim, 6, hidden=8, norm=norm)).train()
    first, second = torch.randn(2, 5, 1, 8, 8)
    mean = torch.diag(torch.rand(6))

    def losses(part):
        z1, z2 = unit_ball(network(torch.cat([first[part], second[part]]))).chunk(2)
        return sample_spectral(z1, z2, mean, weight=3.0)

    slow = slow_gradients(network, lambda i: losses(slice(i, i + 1)).sum(), 5)
    samples = SampleGradients(network)
    samples.backward(losses(slice(None)).sum(), views=2)
    names = [name for name, _ in network.named_parameters()]
    assert_close(samples, list(zip(names, slow, strict=True)))
    samples.close()


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True)])
def test_layers_that_mix_samples_are_refused(layer):
    with pytest.raises(ConfigError, match=f"1 is a {type(layer).__name__}"):
        SampleGradients(nn.Sequential(nn.Conv2d(1, 4, 3), layer))


@pytest.mark.parametrize("changes", [{"groups": 2}, {"padding": "same"}])
def test_unknown_convolutions_are_refused(changes):
    network = nn.Sequential(nn.Conv2d(2, 4, 3, **changes))
    samples = SampleGradients(network)
    with pytest.raises(ConfigError, match="know no such convolution"):
        samples.backward(network(torch.randn(2, 2, 8, 8)).sum())


# --- steps ----------------------------------------------------------------------------------------

CLIP, BATCH = 0.1, 4


def step(network, images, labels, chosen, *, noise_multiplier=1e-9, momentum=0.0, secure=False):
    """Parameters after private steps at rate 1 with these batches."""
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=momentum)
    taken = private_fit(
        network,
        iter(chosen),
        lambda part: (images[part], labels[part]),
        lambda batch: F.cross_entropy(network(batch[0]), batch[1], reduction="none"),
        optimizer=optimizer,
        plan=StepPlan(len(chosen), BATCH, 0.5, CLIP, noise_multiplier),
        noise=None if secure else torch.Generator().manual_seed(1),
    )
    assert taken == len(chosen)
    assert not network.training
    moved = [a - p.detach() for a, p in zip(before, network.parameters(), strict=True)]
    return torch.cat([m.flatten() for m in moved])


@pytest.fixture
def data():
    torch.manual_seed(3)
    scale = torch.tensor([0.01, 1.0, 5.0, 1.0, 0.01, 3.0, 1.0]).view(7, 1, 1, 1)
    return torch.randn(7, 1, 8, 8) * scale, torch.tensor([0, 1, 2, 3, 1, 0, 2])


@pytest.mark.parametrize("at_once", [None, 2])
def test_a_step_is_the_mean_of_clipped_gradients(data, monkeypatch, at_once):
    images, labels = data
    network = classifier()
    if at_once:  # the same in several passes
        size = sum(p.numel() for p in network.parameters())
        monkeypatch.setattr(subject, "_FLOATS_AT_ONCE", at_once * size)
    slow = slow_gradients(
        network.train(),
        lambda i: F.cross_entropy(network(images[i : i + 1]), labels[i : i + 1]),
        7,
    )
    rows = torch.cat([gradient.flatten(1) for gradient in slow], dim=1)
    norms = rows.norm(dim=1)
    assert (norms > CLIP).any()
    clipped = rows * (CLIP / norms).clamp(max=1).unsqueeze(1)
    chosen = np.array([0, 1, 2, 4, 5])
    moved = step(network, images, labels, [chosen])
    assert torch.allclose(moved, clipped[chosen].sum(dim=0) / BATCH, atol=1e-6)


def test_one_sample_more_moves_the_step_by_the_clip_at_most(data):
    images, labels = data
    start = classifier().state_dict()

    def moved(chosen):
        network = classifier()
        network.load_state_dict(start)
        return step(network, images, labels, [np.array(chosen)])

    base = moved([0, 1])
    for sample in (2, 3, 5):
        shift = float((moved([0, 1, sample]) - base).norm())
        assert shift <= CLIP / BATCH * (1 + 1e-4)
        assert shift > 0.9 * CLIP / BATCH  # their gradients are longer than the clip


@pytest.mark.parametrize("secure", [False, True])
def test_an_empty_batch_is_noise_of_the_stated_scale(data, secure):
    images, labels = data
    network = classifier()
    moved = step(
        network, images, labels, [np.array([], dtype=int)], noise_multiplier=3.0, secure=secure
    )
    wanted, count = 3.0 * CLIP / BATCH, len(moved)
    # the standard deviation of n draws is off by 1 / sqrt(2 n); five times that never happens
    assert abs(float(moved.std()) / wanted - 1) < 5 / math.sqrt(2 * count)
    assert abs(float(moved.mean())) < 5 * wanted / math.sqrt(count)
    if not secure:
        again = step(classifier(), images, labels, [np.array([], dtype=int)], noise_multiplier=3.0)
        assert torch.allclose(again, moved, atol=1e-6)


def test_every_step_has_noise_of_its_own(data):
    images, labels = data
    none = np.array([], dtype=int)
    moved = step(classifier(), images, labels, [none] * 4, noise_multiplier=3.0)
    # four independent draws add up to twice one of them, the same one to four times
    assert abs(float(moved.std()) / (2 * 3.0 * CLIP / BATCH) - 1) < 0.05


def test_momentum_is_of_noisy_gradients(data):
    """Post-processing: two empty batches move by n1 + (0.5 n1 + n2)."""
    images, labels = data
    none = [np.array([], dtype=int)] * 2
    plain = [step(classifier(), images, labels, none[:n], noise_multiplier=3.0) for n in (1, 2)]
    heavy = step(classifier(), images, labels, none, noise_multiplier=3.0, momentum=0.5)
    assert torch.allclose(heavy, plain[1] + 0.5 * plain[0], atol=1e-5)


@pytest.mark.parametrize("seed", [5, None])
def test_samples_are_drawn_one_by_one(seed):
    sampler = Sampler(200, 0.1, seed)
    batches = [sampler.draw() for _ in range(400)]
    sizes = np.array([len(batch) for batch in batches])
    # binomial: mean 20, standard deviation sqrt(200 * 0.1 * 0.9) = 4.24
    assert abs(sizes.mean() - 20) < 5 * 4.24 / 20
    assert 3.3 < sizes.std() < 5.2
    counts = np.bincount(np.concatenate(batches), minlength=200)
    assert abs(counts - 40).max() < 5.5 * 6  # 400 draws at 0.1: deviation 6
    assert len(Sampler(30, 1.0, seed).draw()) == 30
    assert all((np.diff(batch) > 0).all() for batch in batches)
