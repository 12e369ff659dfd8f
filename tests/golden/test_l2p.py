"""The numbered golden tests of L2P's specification, section 12: L = 2, D = 8, H = 2, n = 5 tokens, images of 8 px."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from in_training import batch_of, loss_of
from perdure import Backbone, Stream, load_stream
from perdure.backbone.vit import TokenOutput, embed_patches
from perdure.checks.subject import frozen_state
from perdure.config import laid_over
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import ConfigError
from perdure.methods import l2p as l2p_module
from perdure.methods.l2p import L2P, L2PConfig
from perdure.modules.heads import GrowingLinear
from perdure.modules.losses import masked_cross_entropy
from perdure.modules.prompts import cosine_match, vote
from perdure.train.batches import Batch, Rows
from perdure.train.session import Session
from perdure.train.settings import Training, scaled_lr
from tiny_vit import tiny

SMALL = {"pool": 4, "length": 2, "top_k": 2, "train": {"epochs": 1, "batch_size": 8}}


def l2p(backbone: Backbone | None = None, **config: Any) -> L2P:
    return L2P(backbone or tiny(), L2PConfig(**laid_over(SMALL, config)))


def exact(**options: Any) -> tuple[Backbone, Tensor]:
    """The tiny ViT in float64, and the embedded tokens of three images."""
    backbone = tiny(**options)
    backbone.model.double()
    return backbone, embed_patches(backbone.vit, torch.randn(3, 3, 8, 8, dtype=torch.float64))


def prompted(method: L2P, embedded: Tensor, slots: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> TokenOutput:
    """All tokens that the method's own prompted pass gives, before the head reads some of them."""
    seen: list[TokenOutput] = []
    walk = method.backbone.walk
    with monkeypatch.context() as patch:
        patch.setattr(method.backbone, "walk", lambda *a: seen.append(walk(*a)) or seen[-1])
        method._prompted(embedded, torch.tensor(slots))
    return seen[0]


def set_pool(method: L2P, *, prompts: Tensor | None = None, keys: Tensor | None = None) -> L2P:
    """Puts values in the place of the pool's own."""
    if prompts is not None:
        method.pool_.prompts = nn.Parameter(prompts)
    if keys is not None:
        method.pool_.keys = nn.Parameter(keys)
    return method


def features_and_pull(
    method: L2P, loss: Callable[[Batch], Tensor], batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor]:
    """What the head reads of a training batch, and the keys' own term of the loss."""
    read: list[Tensor] = []
    own_pass = method._prompted
    with monkeypatch.context() as patch:
        patch.setattr(method, "_prompted", lambda *a: read.append(own_pass(*a)) or read[-1])
        patch.setattr(l2p_module, "masked_cross_entropy", lambda *_: torch.zeros(()))
        pull = loss(batch)
    return read[0], pull


def picks(slots: Tensor) -> list[set[int]]:
    return [set(row) for row in slots.tolist()]


@pytest.fixture
def stream() -> Stream:
    return load_stream("synthetic", tasks=3)


def test_01_one_hot_queries_select_their_own_key() -> None:
    """1. D = M; a second-largest component picks the second slot; the scale of queries and keys does not matter."""
    eye = torch.eye(8)
    one = set_pool(l2p(pool=8, top_k=1), keys=eye)
    assert one._test_slots(eye)[:, 0].tolist() == list(range(8))
    two = set_pool(l2p(pool=8, top_k=2), keys=eye)
    pairs = [(j, (3 * j + 1) % 8) for j in range(8) if j != (3 * j + 1) % 8]
    queries = torch.stack([eye[j] + 0.4 * eye[k] + 0.1 for j, k in pairs])
    assert two._test_slots(queries).tolist() == [list(pair) for pair in pairs]

    rng = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(50, 8, generator=rng), torch.randn(8, 8, generator=rng)
    plain = set_pool(two, keys=keys)._test_slots(queries)
    assert len(set(map(tuple, plain.tolist()))) > 10
    assert torch.equal(two._test_slots(7 * queries), plain)
    assert torch.equal(set_pool(two, keys=7 * keys)._test_slots(queries), plain)
    torch.testing.assert_close(cosine_match(7 * queries, 7 * keys), cosine_match(queries, keys))


def test_02_the_vote_is_broken_by_the_smaller_index() -> None:
    """2. {0, 1}, {1, 2}, {1, 3}: slot 1 has three votes, 0, 2 and 3 have one each, so all use {1, 0}."""
    chosen = torch.tensor([[0, 1], [1, 2], [1, 3]])
    assert vote(chosen, 4).tolist() == [[1, 0]] * 3
    assert vote(chosen[[2, 0, 1]], 4).tolist() == [[1, 0]] * 3

    eye = torch.eye(8)
    queries = torch.stack([eye[0] + 0.9 * eye[1], eye[1] + 0.9 * eye[2], eye[1] + 0.9 * eye[3]])
    voting, alone = (set_pool(l2p(pool=8, vote=v), keys=eye) for v in ({"batch_size": 16}, None))
    assert picks(alone._test_slots(queries)) == [{0, 1}, {1, 2}, {1, 3}]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        assert voting._test_slots(queries[order]).tolist() == [[1, 0]] * 3
        assert picks(alone._test_slots(queries[order])) == [[{0, 1}, {1, 2}, {1, 3}][i] for i in order]


@pytest.mark.parametrize(("top_k", "length"), [(1, 5), (5, 1)])
@pytest.mark.parametrize("options", [{}, {"pre_norm": True}])
def test_03_copies_of_all_tokens_do_not_move_the_class_token(
    top_k: int, length: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """3. N Lp = n and prompt_pos = none: every softmax average stays what it was."""
    backbone, embedded = exact(**options)
    plain, slots = backbone.walk(embedded), [list(range(top_k))]
    for i in range(3):
        method = l2p(backbone, pool=top_k, top_k=top_k, length=length)
        set_pool(method, prompts=embedded[i].view(top_k, length, 8))
        out = prompted(method, embedded[[i]], slots, monkeypatch)
        torch.testing.assert_close(out.cls, plain.cls[[i]], atol=1e-10, rtol=0)
        torch.testing.assert_close(out.without_prompts, plain.all[[i]], atol=1e-10, rtol=0)
        set_pool(method, prompts=embedded[i].roll(1, 1).view(top_k, length, 8))
        assert (prompted(method, embedded[[i]], slots, monkeypatch).cls - plain.cls[[i]]).abs().max() > 1e-4


def test_04_without_blocks_the_head_reads_the_mean_of_the_chosen_prompts() -> None:
    """4. W = identity; the walk wants a block 0, so "no blocks" is one block whose branches are zero."""
    backbone = tiny(depth=1)
    block = backbone.vit.blocks[0]
    for layer in (block.attn.proj, block.mlp.fc2):
        layer.weight.zero_(), layer.bias.zero_()
    backbone.vit.norm = nn.Identity()
    method = l2p(backbone, pool=6)
    method.head_.weight, method.head_.bias = nn.Parameter(torch.eye(8)), nn.Parameter(torch.zeros(8))
    embedded, queries = torch.randn(3, 5, 8), torch.randn(3, 8)
    logits = method._test_logits(embedded, queries)
    chosen = [method.pool_.prompts[list(slots)].flatten(0, 1).mean(0) for slots in picks(method._test_slots(queries))]
    torch.testing.assert_close(logits.float(), torch.stack(chosen))
    assert len(set(map(tuple, logits.tolist()))) > 1


def test_05_the_pull_of_the_keys(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """5. -λ N where all chosen keys coincide with the query; gradient for chosen keys alone, across the key."""
    method, q = l2p(pool=5, pull=0.7), torch.randn(1, 8)
    loss = loss_of(method, stream[0])
    others = torch.randn(3, 8)
    others -= (others @ q.T) / q.square().sum() * q  # at right angles to the query
    set_pool(method, keys=torch.cat([others, 2 * q, 0.3 * q]))
    tokens = torch.randn(4, 5, 8)
    _, pull = features_and_pull(method, loss, batch_of(tokens, q.expand(4, -1)), monkeypatch)
    assert pull.item() == pytest.approx(-0.7 * 2, abs=1e-6)

    keys, queries = torch.randn(5, 8), torch.randn(4, 8)
    set_pool(method, keys=keys)
    _, pull = features_and_pull(method, loss, batch_of(tokens, queries), monkeypatch)
    best = F.cosine_similarity(queries[:, None], keys[None], dim=2).topk(2).values
    assert pull.item() == pytest.approx(-0.7 * best.sum().item() / 4, abs=1e-6), "summed over N, mean over the batch"


def test_05_the_pulls_gradient(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """5. Exactly zero for keys not chosen and for prompts; at right angles to a chosen key."""
    method = l2p(pool=8, pull=0.7)
    queries = torch.randn(3, 8)
    batch = batch_of(torch.randn(3, 5, 8), queries)
    features, pull = features_and_pull(method, loss_of(method, stream[0]), batch, monkeypatch)
    keys, prompts = method.pool_.keys, method.pool_.prompts
    of_keys, of_prompts = torch.autograd.grad(pull, (keys, prompts), retain_graph=True, allow_unused=True)
    assert of_prompts is None
    chosen = sorted(set().union(*picks(method._test_slots(queries))))
    assert 2 <= len(chosen) < 8
    assert (of_keys[[i for i in range(8) if i not in chosen]] == 0).all()
    assert (of_keys[chosen].norm(dim=1) > 1e-3).all()
    along = (of_keys * keys).sum(1) / keys.norm(dim=1)
    assert along.abs().max() < 1e-6

    of_keys, of_prompts = torch.autograd.grad(features.square().sum(), (keys, prompts), allow_unused=True)
    assert of_keys is None, "keys learn from the pull alone"
    assert (of_prompts[chosen] != 0).all()
    assert (of_prompts[[i for i in range(8) if i not in chosen]] == 0).all()


def test_06_other_classes_rows_stay_as_they_are(stream: Stream) -> None:
    """6. Bit for bit, in training; the head grows, so rows of future classes are tried on a head made by hand."""
    method = l2p(train={"epochs": 3}).fit_task(stream[0])
    before = frozen_state(method)["head_"]
    method.fit_task(stream[1])
    assert torch.equal(method.head_.weight[:2], before["weight"])
    assert torch.equal(method.head_.bias[:2], before["bias"])
    assert (method.head_.bias[2:] != 0).all(), "the new rows did learn"

    head, features = GrowingLinear(8), torch.randn(6, 8)
    head.grow(6, torch.Generator().manual_seed(0), "normal_0.02")
    old, columns, current = head.weight.detach().clone(), torch.tensor([2, 3, 3, 2, 2, 3]), torch.tensor([2, 3])
    loss = masked_cross_entropy(head(features), columns, current)
    torch.testing.assert_close(loss, F.cross_entropy(head(features)[:, 2:4], columns - 2), atol=0, rtol=0)
    steps = Training(lr=0.1, epochs=5, batch_size=6, shuffle=False, optimizer="adam")
    Session(Rows(6, steps), steps, torch.Generator(), fast=[head]).run(
        lambda at: masked_cross_entropy(head(features[at]), columns[at], current)
    )
    assert torch.equal(head.weight[[0, 1, 4, 5]], old[[0, 1, 4, 5]])
    assert (head.bias[[0, 1, 4, 5]] == 0).all()
    assert (head.weight[2:4] != old[2:4]).all()


def test_07_the_order_of_prompts_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """7. Neither of the prompts in S nor of the tokens in a prompt."""
    backbone, embedded = exact()
    method = l2p(backbone, pool=4, length=3)
    pool = torch.randn(4, 3, 8, dtype=torch.float64)
    slots = [[2, 0], [1, 3], [0, 1]]
    one = prompted(set_pool(method, prompts=pool), embedded, slots, monkeypatch)
    swapped = prompted(method, embedded, [row[::-1] for row in slots], monkeypatch)
    turned = prompted(set_pool(method, prompts=pool[:, [2, 0, 1]]), embedded, slots, monkeypatch)
    for other in (swapped, turned):
        assert not torch.equal(other.prompts, one.prompts)
        torch.testing.assert_close(other.without_prompts, one.without_prompts, atol=1e-12, rtol=0)
        torch.testing.assert_close(other.prompts.mean(1), one.prompts.mean(1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}])
def test_07_the_class_tokens_position_shifts_every_prompt(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """7. prompt_pos = cls with P is prompt_pos = none with P shifted by the class token's position vector."""
    backbone, embedded = exact(**options)
    pool, slots = torch.randn(4, 2, 8, dtype=torch.float64), [[2, 0], [1, 3], [0, 1]]
    by_flag = prompted(set_pool(l2p(backbone, prompt_pos="cls"), prompts=pool), embedded, slots, monkeypatch)
    moved = set_pool(l2p(backbone), prompts=pool + backbone.vit.pos_embed[0, 0])
    torch.testing.assert_close(by_flag.all, prompted(moved, embedded, slots, monkeypatch).all, atol=1e-12, rtol=0)
    still = prompted(set_pool(l2p(backbone), prompts=pool), embedded, slots, monkeypatch)
    assert (still.all - by_flag.all).abs().max() > 1e-3


def test_08_task_slots(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """8. M = 4, N = 2: task 1 learns {2, 3}, which begin as copies of {0, 1}, keys apart; a third task has no slots."""
    method = l2p(train_prompts={"name": "task_slot", "copy_prev": True}).fit_task(stream[0])
    before = frozen_state(method)["pool_"]
    starts: list[tuple[Tensor, Tensor]] = []
    chosen: list[Tensor] = []
    own_pass = method._prompted

    def watch(embedded: Tensor, slots: Tensor) -> Tensor:
        starts.append((method.pool_.prompts.detach().clone(), method.pool_.keys.detach().clone()))
        chosen.append(slots)
        return own_pass(embedded, slots)

    monkeypatch.setattr(method, "_prompted", watch)
    method.fit_task(stream[1])
    assert {tuple(row) for slots in chosen for row in slots.tolist()} == {(2, 3)}
    prompts, keys = starts[0]
    assert torch.equal(prompts[2:], prompts[:2])
    assert torch.equal(prompts[:2], before["prompts"][:2])
    assert torch.equal(keys, before["keys"])
    assert (keys[2:] != keys[:2]).all()
    assert torch.equal(method.pool_.prompts[:2], prompts[:2]), "task 0's prompts stay"
    assert torch.equal(method.pool_.keys[:2], keys[:2])
    assert (method.pool_.prompts[2:] != prompts[2:]).all()
    assert (method.pool_.keys[2:] != keys[2:]).all()

    after = frozen_state(method)
    with pytest.raises(ConfigError, match=r"L2P: pool must be at least 6 for task 2, but got 4\. Set method\.pool=6"):
        method.fit_task(stream[2])
    assert method.classes_ == after["classes_"]
    assert all(torch.equal(v, method.pool_.state_dict()[k]) for k, v in after["pool_"].items())


def test_08_without_copying_a_tasks_prompts_begin_at_random(stream: Stream) -> None:
    """8. copy_prev is off by default; tests choose among all slots whatever the training was."""
    method = l2p(train_prompts="task_slot").fit_task(stream[0])
    start = L2P(tiny(), method.config).pool_
    assert torch.equal(method.pool_.prompts[2:], start.prompts[2:])
    assert (method.pool_.prompts[:2] != start.prompts[:2]).all()
    set_pool(method, keys=torch.eye(8)[:4])
    assert picks(method._test_slots(torch.eye(8)[[2]] + 0.5 * torch.eye(8)[[1]])) == [{1, 2}]


def test_09_cached_queries_change_no_bit(stream: Stream) -> None:
    """9. Queries from the store or computed on the spot, in batches of eight or all at once."""
    method = l2p().fit_task(stream[0]).fit_task(stream[1])
    data = synthetic_dataset(range(6), test_per_class=6).test
    cached, again = (list(method.scores_of(data)) for _ in range(2))
    fresh = [method.scores(images) for _, images in data.batches(method.backbone.preprocess, 36)]
    assert [len(s) for s in cached] == [8, 8, 8, 8, 4]
    assert torch.equal(torch.cat(cached), torch.cat(again))
    assert torch.equal(torch.cat(cached), torch.cat(fresh))


def test_10_an_image_is_scored_the_same_in_any_company(stream: Stream) -> None:
    """10. Alone, among images of all classes, and sorted by class, if every image picks its own prompts."""
    method = l2p(pool=8, train={"epochs": 2}).fit_task(stream[0]).fit_task(stream[1]).fit_task(stream[2])
    images = torch.cat([next(stream.test(i).batches(method.backbone.preprocess, 64))[1] for i in range(3)])
    mixed = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    whole = method.scores(images)
    for other in (
        torch.cat([method.scores(image[None]) for image in images]),
        method.scores(images[mixed])[mixed.argsort()],
        torch.cat([method.scores(part) for part in images.split(8)]),
    ):
        torch.testing.assert_close(other, whole, atol=1e-6, rtol=0)
        assert torch.equal(other.argmax(1), whole.argmax(1))


def test_10_a_voting_batch_gives_the_task_away() -> None:
    """10. An image that looks like the other task's gets its own task's prompt from its neighbours, and loses it again.

    Two tasks, a prompt each. The last image of task 0 is nearer to task 1's key: among its own kind the vote corrects
    it, in a mixed batch it does not. So what the test batch holds decides, and a batch of one class is an oracle.
    """
    keys = torch.eye(8)[:2]
    mine, lookalike, theirs = torch.tensor([[1.0, 0.1], [0.4, 0.6], [0.1, 1.0]])
    mine, lookalike, theirs = (F.pad(q, (0, 6)) for q in (mine, lookalike, theirs))
    sorted_by_class, mixed = torch.stack([mine, mine, lookalike]), torch.stack([mine, theirs, theirs, lookalike])
    backbone = tiny()
    alone, voting = (set_pool(l2p(backbone, pool=2, top_k=1, vote=v), keys=keys) for v in (None, {"batch_size": 16}))
    for method in (alone, voting):
        method.head_.grow(4, torch.Generator().manual_seed(0), "torch_linear")
    assert alone._test_slots(sorted_by_class)[-1] == alone._test_slots(mixed)[-1] == 1
    assert voting._test_slots(sorted_by_class)[-1] == 0, "its task's, which it would not choose itself"
    assert voting._test_slots(mixed)[-1] == 1

    image = torch.randn(1, 5, 8)

    def scored(method: L2P, queries: Tensor) -> Tensor:
        with torch.no_grad():
            return method._test_logits(image.expand(len(queries), -1, -1), queries)[-1]

    torch.testing.assert_close(scored(alone, sorted_by_class), scored(alone, mixed))
    assert (scored(voting, sorted_by_class) - scored(voting, mixed)).abs().max() > 1e-3


def test_11_the_backbone_gets_no_gradient_and_the_count_is_the_papers(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """11. M Lp D + M D + C (D + 1) numbers learn."""
    sessions, unlearned = [], []
    run = Session.run

    def watched(session: Session[Batch], loss: Callable[[Batch], Tensor]) -> None:
        sessions.append(session)
        run(session, loss, after_backward=lambda: unlearned.extend(p for p in session.learned if p.grad is None))

    monkeypatch.setattr(Session, "run", watched)
    method = l2p(pool=7, length=3, logits="seen").fit_task(stream[0]).fit_task(stream[1])
    assert all(p.grad is None and not p.requires_grad for p in method.backbone.parameters())
    assert unlearned == []
    wanted = 7 * 3 * 8 + 7 * 8 + 4 * (8 + 1)
    assert sum(p.numel() for p in sessions[1].learned) == method.learned_parameters() == wanted


@pytest.mark.parametrize(("batch_size", "lr"), [(16, 0.001875), (128, 0.015)])
def test_12_the_learning_rate_is_for_256_images(
    batch_size: int, lr: float, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12. Base 0.03, as the optimiser gets it."""
    given: list[float] = []
    monkeypatch.setattr(Session, "run", lambda self, _: given.extend(g["lr"] for g in self.optimizer.param_groups))
    l2p(train={"batch_size": batch_size}).fit_task(stream[0])
    assert given == [pytest.approx(lr, rel=1e-12)]
    assert scaled_lr(0.03, batch_size) == pytest.approx(lr, rel=1e-12)
