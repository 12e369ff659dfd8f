"""Several adapted backbones on one set of weights: as EASE keeps one per task, and MOS goes on from the last one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from perdure import Backbone
from perdure.backbone import Insertion
from perdure.modules.adapter import Adapter
from tiny_vit import tiny


def images(backbone: Backbone, seed: int = 0) -> Tensor:
    side = backbone.preprocess.image_size
    return torch.randint(0, 256, (4, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def adapted(stock: Backbone, seed: int = 0) -> tuple[Backbone, Insertion]:
    """A view with a fresh adapter, which may be trained."""
    view, rng = stock.view(), torch.Generator().manual_seed(seed)
    return view, view.insert("mlp", lambda site: Adapter(site.n_in, 2, rng))


def trained(view: Backbone, part: Insertion, seed: int) -> None:
    optimizer = torch.optim.SGD(part.parameters(), lr=0.1)
    for step in range(2):  # the first step moves only W_up, which starts at zero
        optimizer.zero_grad()
        (view.embed(images(view, seed + step)) - seed).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    part.requires_grad_(False)


@pytest.fixture(params=["tiny", "default"])
def stock(request: pytest.FixtureRequest) -> Backbone:
    return tiny() if request.param == "tiny" else Backbone.load("default", device="cpu")


def test_adapters_of_three_tasks_share_the_weights_and_the_embedding(stock: Backbone) -> None:
    x, before, weights = images(stock), stock.fingerprint, copy.deepcopy(stock.model.state_dict())
    adapters: list[Backbone] = []
    kept: list[tuple[str, Tensor]] = []
    for task in range(3):
        view, part = adapted(stock, seed=task)
        assert torch.equal(view.features(x), stock.features(x))  # fresh, not a copy of the last one
        assert sum(p.requires_grad for p in view.parameters()) == len(list(part.parameters()))
        trained(view, part, seed=task + 1)
        adapters.append(view)
        kept.append((view.fingerprint, view.features(x)))
    for view, (fingerprint, features) in zip(adapters, kept, strict=True):
        assert view.fingerprint == fingerprint
        assert torch.equal(view.features(x), features)
    assert len({fingerprint for fingerprint, _ in kept} | {before}) == 4

    stems: list[int] = []
    handle = stock.model.patch_embed.register_forward_hook(lambda _, args, out: stems.append(len(args[0])))
    with torch.no_grad():
        embedded = stock.embed_tokens(x)
        by_id = [view.pool(view.walk(embedded)) for view in adapters]
    handle.remove()
    assert stems == [len(x)]
    assert all(torch.equal(got, features) for got, (_, features) in zip(by_id, kept, strict=True))
    assert stock.fingerprint == before
    assert all(torch.equal(v, weights[k]) for k, v in stock.model.state_dict().items())


def test_a_working_adapter_is_pulled_to_the_mean_of_the_stored_ones() -> None:
    stock = tiny()
    x, (view, work) = images(stock), adapted(stock)
    stored: list[tuple[Backbone, Insertion]] = []
    for task in range(2):
        work.requires_grad_(True)
        trained(view, work, seed=task + 1)
        other, part = adapted(stock)
        part.load_state_dict(work.state_dict())  # copies: what is stored cannot move with what is trained
        part.requires_grad_(False)
        assert other.fingerprint == view.fingerprint
        stored.append((other, part))
    fingerprints = [other.fingerprint for other, _ in stored]
    ours = [p.clone() for p in work.parameters()]
    mean = [torch.stack(ps).mean(0) for ps in zip(*(part.parameters() for _, part in stored), strict=True)]
    with torch.no_grad():
        torch._foreach_lerp_(list(work.parameters()), mean, 0.1)
    for p, before, middle in zip(work.parameters(), ours, mean, strict=True):
        assert torch.allclose(p, 0.9 * before + 0.1 * middle, atol=1e-6)
    assert view.fingerprint not in fingerprints
    assert [other.fingerprint for other, _ in stored] == fingerprints

    # switching between passes is choosing a view; nothing stays switched
    there_and_back = [stored[k][0].features(x) for k in (0, 1, 0)]
    assert torch.equal(there_and_back[0], there_and_back[2])
    assert not torch.allclose(there_and_back[0], there_and_back[1], atol=1e-4)


def test_one_adapter_is_trained_on_top_of_a_frozen_one() -> None:
    stock = tiny()
    x, (view, first) = images(stock), adapted(stock)
    trained(view, first, seed=1)
    one, frozen = view.features(x), copy.deepcopy(first.state_dict())
    rng = torch.Generator().manual_seed(7)
    second = view.insert("mlp", lambda site: Adapter(site.n_in, 2, rng))
    assert torch.equal(view.features(x), one)
    trained(view, second, seed=2)
    assert all(torch.equal(v, frozen[k]) for k, v in first.state_dict().items())
    assert not torch.allclose(view.features(x), one, atol=1e-4)
    view.remove(second)
    assert torch.equal(view.features(x), one)


def test_insertions_stack_and_leave_in_any_order() -> None:
    stock = tiny()
    x, (view, first) = images(stock), adapted(stock)
    trained(view, first, seed=1)
    rng = torch.Generator().manual_seed(7)
    second = view.insert("mlp", lambda site: Adapter(site.n_in, 2, rng))
    trained(view, second, seed=2)
    view.remove(first)
    assert not torch.allclose(view.features(x), stock.features(x), atol=1e-4)
    view.remove(second)
    assert torch.equal(view.features(x), stock.features(x))
    assert view.fingerprint == stock.fingerprint


def test_a_copy_of_an_adapted_backbone_has_modules_of_its_own() -> None:
    stock = tiny()
    x, (view, part) = images(stock), adapted(stock)
    trained(view, part, seed=1)
    expected, other = view.features(x), copy.deepcopy(view)
    other.remove(other.insertions[0])  # type: ignore[arg-type]
    assert torch.equal(view.features(x), expected)
    assert torch.equal(other.features(x), stock.features(x))


def test_views_count_passes_together_and_share_memory() -> None:
    stock = tiny()
    view = stock.view()
    view.features(images(stock))
    assert stock.passes.images == view.passes.images == 4
    pairs = zip(stock.model.parameters(), view.model.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)


def test_an_insertion_is_stored_and_loaded_as_a_module(stock: Backbone) -> None:
    view, part = adapted(stock, seed=1)
    trained(view, part, seed=1)
    other, empty = adapted(stock, seed=2)
    assert isinstance(empty, nn.Module)
    empty.requires_grad_(False).load_state_dict(part.state_dict())
    assert other.fingerprint == view.fingerprint
    assert torch.equal(other.features(images(stock)), view.features(images(stock)))


def test_training_in_bfloat16_moves_only_what_is_inserted() -> None:
    stock = Backbone.load("test_vit", pretrained=False, device="cpu", precision="bfloat16")
    before = stock.fingerprint
    view, part = adapted(stock)
    start = copy.deepcopy(part.state_dict())
    trained(view, part, seed=1)
    assert all(p.dtype == torch.float32 for p in part.parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
    assert all(not torch.equal(v, start[k]) for k, v in part.state_dict().items() if "up" in k)
    assert all(p.grad is None for p in view.model.parameters())
    assert stock.fingerprint == before
