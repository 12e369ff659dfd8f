"""The numbered golden tests of ESN's specification, section 12: D = 8, H = 2, images of 8 px unless told."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from perdure import Backbone, FeatureStore, Stream, load_stream
from perdure.checks.subject import equal, pixels
from perdure.config import laid_over
from perdure.data import LabelledImages
from perdure.methods.esn import ESN, ESNConfig
from perdure.modules.ensemble import EnergyVote, NewestRecall, combined, negative_energies
from perdure.modules.losses import Anchor
from perdure.modules.task_attention import TaskAttention, TaskAttentions, normalised
from perdure.train.session import Session
from rows import drawn, generator
from tiny_vit import tiny

STILL = {"min_scale": 1.0, "flip": False}
SMALL = {"length": 2, "train": {"epochs": 2, "batch_size": 8, "augment": STILL}}


def esn(backbone: Backbone | None = None, store: FeatureStore | None = None, **config: Any) -> ESN:
    return ESN(backbone or tiny(), ESNConfig(**laid_over(SMALL, config)), store=store)


def rows(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def naive(block: TaskAttention, x: Tensor) -> Tensor:
    """The block as it is written down: keys and values of every token, layer norms of the whole."""
    b, d, h = len(x), x.shape[2], block.heads
    tokens = torch.cat([block.token.expand(b, 1, -1), x], 1)
    u = F.layer_norm(tokens, (d,), block.norm1.weight, block.norm1.bias, 1e-5)
    q, k, v = block.query(u[:, :1]), block.key(u), block.value(u)
    q, k, v = (part.unflatten(2, (h, -1)).transpose(1, 2) for part in (q, k, v))
    attention = (q @ k.mT / (d // h) ** 0.5).softmax(-1)
    e = block.token + block.proj((attention @ v).transpose(1, 2).flatten(1))
    return e + block.fc2(F.gelu(block.fc1(F.layer_norm(e, (d,), block.norm2.weight, block.norm2.bias, 1e-5))))


def shaken(d: int = 8, heads: int = 2, dtype: torch.dtype = torch.float64) -> TaskAttention:
    """A block whose biases and norms are not the identity's, so that every term counts."""
    block = TaskAttention(drawn(d), heads, generator()).to(dtype)
    for i, p in enumerate(block.parameters()):
        p.data += 0.5 * drawn(*p.shape, seed=i).to(dtype)
    return block


@pytest.fixture
def stream() -> Stream:
    return load_stream("synthetic", tasks=3)


def test_01_the_anchors_level() -> None:
    """1. All logits a, n = 10: the loss is zero at -7.6974 for the soft minimum, at +7.6974 for the free energy."""
    for form, sign in (("softmin", -1), ("softmax", 1)):
        anchor = Anchor(form=form)
        assert anchor.energies(torch.full((1, 10), 3.0)).item() == pytest.approx(-sign * 3.0 - math.log(10), abs=1e-6)
        level = sign * (10 - math.log(10))
        assert level == pytest.approx(sign * 7.6974, abs=1e-4)
        assert anchor.loss(torch.full((4, 10), level, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-12)
        assert anchor.loss(torch.full((4, 10), level + 1)).item() == pytest.approx(0.1, abs=1e-5)


@pytest.mark.parametrize(
    ("form", "energy", "loss"), [("softmin", -0.126928, 9.747755), ("softmax", -2.126928, 6.198526)]
)
def test_02_the_anchors_two_forms(form: Any, energy: float, loss: float) -> None:
    """2. z = (0, 2); the soft minimum's gradient is 2 lambda (E - Delta) softmax(-beta z), by differences too."""
    anchor, z = Anchor(form=form), rows([0.0, 2.0]).requires_grad_()
    assert anchor.energies(z).item() == pytest.approx(energy, abs=1e-6)
    assert anchor.loss(z).item() == pytest.approx(loss, abs=1e-6)
    assert ESNConfig().anchor.form == "softmin", "pitfall 2: which form is active"
    for beta in (1.0, 2.5):
        other = Anchor(form=form, beta=beta)
        assert torch.autograd.gradcheck(other.loss, z)
        if form == "softmin":
            (gradient,) = torch.autograd.grad(other.loss(z), z)
            wanted = 2 * 0.1 * (other.energies(z) + 10) * (-beta * z).softmax(1)
            torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=0)


def test_03_small_temperatures_do_not_overflow() -> None:
    """3. T LSE(z / T) goes to the largest logit."""
    z = rows([0.0, 2.0])
    assert negative_energies([z], 0.1).item() / 0.1 == pytest.approx(20.0000000021, abs=1e-10)
    assert negative_energies([z.float()], 0.001).item() / 0.001 == pytest.approx(2000, abs=1e-9)


def stage(logits: list[Tensor], *temperatures: float) -> int:
    """Which member answers."""
    at, columns = 0, []
    for z in logits:
        columns.append(range(at, at := at + z.shape[1]))
    best = int(combined(logits, columns, EnergyVote(temperatures)).argmax())
    return next(j for j, own in enumerate(columns) if best in own)


def test_04_the_temperature_matters() -> None:
    """4. (5, -50) against (4.6, 4.6): B at T = 1 (5.293 > 5.0), A at T = 0.1 (4.669 < 5.0)."""
    both = [rows([5.0, -50.0]), rows([4.6, 4.6])]
    assert negative_energies(both, 1.0)[0].tolist() == pytest.approx([5.0, 5.293], abs=1e-3)
    assert negative_energies(both, 0.1)[0].tolist() == pytest.approx([5.0, 4.669], abs=1e-3)
    assert [stage(both, t) for t in (1.0, 0.1)] == [1, 0]


def test_05_the_vote() -> None:
    """5. Stages (0, 2, 2) give 2; a list of temperatures counts as a set (pitfall 4); of (2, 0) it is 0."""
    # stage 0 has the largest logit; stage 2 has many, so that it overtakes between T = 0.001 and T = 0.1
    three = [rows([5.0]), rows([-90.0]), rows([4.9] * 10)]
    assert [stage(three, t) for t in (0.001, 0.1, 1.0)] == [0, 2, 2]
    assert stage(three, 0.001, 0.1, 1.0) == 2
    assert stage(three, 0.001, 0.1, 0.1, 0.1) == 0, "two votes, one each: the smaller stage"
    assert stage(three, 1.0, 0.001) == 0


def test_06_columns_follow_the_stages_sizes() -> None:
    """6. Sizes 3 and 2, stage 1, local class 1: column 4; stage * size would be 3. Pitfall 5."""
    method = esn()
    method.slot_columns_, method.widths_, method.temperatures_ = [0, 1, 2, 3, 4], [3, 2], [0.001, 0.001]
    logits = torch.tensor([[0.0, 1.0, 2.0, -5.0, 9.0]])
    assert method._vote(logits).argmax(1).item() == 4

    unequal = load_stream("synthetic", sizes=[3, 2, 1])
    learned = esn().fit_task(unequal[0]).fit_task(unequal[1])
    assert learned.widths_ == [3, 2]
    assert learned.slot_columns_ == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("mode", ["none", "first_stage"])
def test_07_earlier_stages_are_not_touched(mode: str, stream: Stream) -> None:
    """7. Every tensor of stage 0 and its logits, bit for bit."""
    method = esn(prompt_mode=mode).fit_task(stream[0])
    images = pixels(method, stream.test(0))
    before, logits = copy.deepcopy(method.state_dict()), method._logits(method.outputs.of(images))
    method.fit_task(stream[1]).fit_task(stream[2])
    after = method.state_dict()
    assert equal(before["prompt_"], after["prompt_"])
    assert len(before["blocks_"]) == 17
    assert all(torch.equal(v, after["blocks_"][k]) for k, v in before["blocks_"].items())
    assert all(torch.equal(v, after["head_"][k][:2]) for k, v in before["head_"].items())
    assert torch.equal(method._logits(method.outputs.of(images))[:, :2], logits)
    assert method.temperatures_[0] == 0.001
    assert len(after["prompt_"]["values"]) == (0 if mode == "none" else 2)


def test_07_a_prompt_that_goes_on_learning_drifts_away_from_old_classifiers(stream: Stream) -> None:
    """7. Pitfall 1: as released, stage 0 meets tokens in its tests that it never learned with."""
    method = esn(prompt_mode="sequential", train={"lr": 0.1}).fit_task(stream[0])
    images = pixels(method, stream.test(0))
    prompt, logits = method.prompt_.values.clone(), method._logits(method.outputs.of(images))
    method.fit_task(stream[1])
    assert (method.prompt_.values != prompt).all()
    assert (method._logits(method.outputs.of(images))[:, :2] - logits).abs().max() > 1e-5


def test_08_one_pass_per_test_image_whatever_the_number_of_stages(store: FeatureStore) -> None:
    """8. For four stages; and where tokens are kept, one per image ever."""
    tasks = load_stream("synthetic", tasks=4)
    method, apart = esn(store=store, length=1), esn(store=store, length=1, store_tokens=False)
    for m in (method, apart):
        for task in tasks:
            m.fit_task(task)
    assert len(method.blocks_) == 4
    images = pixels(method, tasks.test(0))
    assert passes(method, lambda: method.scores(images)) == len(images)
    test = tasks.test(1)
    assert passes(method, lambda: method.predict(test)) == len(test)
    assert passes(method, lambda: method.predict(test)) == 0
    assert [passes(apart, lambda: apart.predict(test)) for _ in range(2)] == [len(test)] * 2
    torch.testing.assert_close(torch.cat(list(method.scores_of(test))), method.scores(pixels(method, test)))


def passes(method: ESN, do: Any) -> int:
    before = method.backbone.passes.images
    do()
    return method.backbone.passes.images - before


def test_08_training_images_pass_once_where_nothing_changes_their_tokens(stream: Stream, store: FeatureStore) -> None:
    """Section 10: as many epochs as one likes, selection of the temperature included."""
    n, first, later = len(stream[0].train), 5 * len(stream[0].train), len(stream[1].train)
    method = esn(store=store, train={"epochs": 5})
    assert passes(method, lambda: method.fit_task(stream[0])) == first, "the prompt learns"
    assert passes(method, lambda: method.fit_task(stream[1])) == later
    crops = esn(store=store, train={"epochs": 5, "augment": {"min_scale": 0.5}}).fit_task(stream[0])
    assert passes(crops, lambda: crops.fit_task(stream[1])) == 6 * n, "five epochs of crops, and the eval views"
    bare = esn(store=store, prompt_mode="none", train={"epochs": 5})
    assert passes(bare, lambda: bare.fit_task(stream[0])) == n


def test_08_kept_tokens_train_as_passing_ones_do(stream: Stream, store: FeatureStore) -> None:
    """To rounding: batches of eight make the stored tokens, batches of the training the others."""
    kept, passing = (
        esn(store=store, prompt_mode="none", store_tokens=keep).fit_task(stream[0]).fit_task(stream[1])
        for keep in (True, False)
    )
    for name, value in kept.blocks_.state_dict().items():
        torch.testing.assert_close(passing.blocks_.state_dict()[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("d", "heads", "n"), [(8, 2, 5), (12, 3, 1), (8, 8, 7)])
def test_09_the_folded_block_is_the_naive_one(d: int, heads: int, n: int) -> None:
    """9. Forward and all gradients, of the tokens too: in float64 to 1e-12, in float32 to 1e-5."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        block = shaken(d, heads, dtype)
        x = (3 * drawn(4, n, d, seed=9) + 1).to(dtype).requires_grad_()
        weights = drawn(4, d, seed=11).to(dtype)
        outs, gradients = [], []
        for out in (block(normalised(x)), naive(block, x)):
            outs.append(out)
            gradients.append(torch.autograd.grad((out * weights).sum(), [x, *block.parameters()]))
        torch.testing.assert_close(outs[0], outs[1], atol=tolerance, rtol=tolerance)
        for folded, plain in zip(*gradients, strict=True):
            torch.testing.assert_close(folded, plain, atol=20 * tolerance, rtol=tolerance)
        large = {
            name
            for (name, _), g in zip(block.named_parameters(), gradients[0][1:], strict=True)
            if g.abs().max() > 1e-3
        }
        assert {name for name, _ in block.named_parameters()} - large <= {"key.bias", "query.weight"}
        both = TaskAttentions(torch.zeros(d), heads)
        both.parts.extend([shaken(d, heads, dtype), block])
        exact = both.exact(x.detach())[1]
        assert exact.dtype == torch.float64
        torch.testing.assert_close(exact, outs[0].detach().double(), atol=tolerance, rtol=tolerance)


def test_09_at_test_an_images_score_does_not_depend_on_the_others(stream: Stream) -> None:
    """A product with as few columns as there are heads takes another kernel for another number of tokens."""
    method = esn(temperature={"name": "fixed"})
    for task in stream[:2]:
        method.fit_task(task)
    x = torch.cat([pixels(method, stream.test(i)) for i in range(2)])
    together = method.scores(x)
    for n in (1, 2, 3, 5):
        assert torch.equal(torch.cat([method.scores(part) for part in x.split(n)]), together)


def test_10_the_temperature_of_the_newest_stages_recall() -> None:
    """10. Of the temperatures at which all images go to the newest stage, the smallest."""
    # the newest leads from T = 0.38 on (4.6 + T log 3 > 5 + T log ... of one), but not where many old logits join in
    few, many = rows([5.0]), rows([4.6] * 3)
    assert NewestRecall().choose([[few, many]]) == 0.4
    assert NewestRecall(candidates=[0.7, 0.5, 0.1]).choose([[few, many]]) == 0.5
    assert NewestRecall(candidates=[0.7, 0.5, 0.1]).choose([[many, few], [many, few]]) == 0.1
    assert NewestRecall(candidates=[0.7, 0.1]).choose([[few, many], [many, few], [many, few]]) == 0.1
    assert NewestRecall().candidates == pytest.approx([0.001, 0.01, *(i / 10 for i in range(1, 11))])
    assert NewestRecall().choose([]) == 0.001, "the first stage's"


def test_10_selection_looks_at_the_tasks_own_training_images_alone(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall 3: never old data, never tests; a fixed temperature looks at nothing."""
    seen: list[LabelledImages] = []
    method = esn().fit_task(stream[0])
    own = method._logits_of

    def watched(data: LabelledImages) -> Iterator[Tensor]:
        seen.append(data)
        return own(data)

    monkeypatch.setattr(method, "_logits_of", watched)
    method.fit_task(stream[1])
    assert seen == [stream[1].train]
    fixed = esn(temperature={"name": "fixed", "value": 0.7}, train={"augment": {"min_scale": 0.5}})
    fixed.fit_task(stream[0])
    assert passes(fixed, lambda: fixed.fit_task(stream[1])) == 2 * len(stream[1].train), "no pass beside the training's"
    assert fixed.temperatures_ == [0.7, 0.7]


def test_11_a_session_that_was_left_goes_on_with_the_same_bits(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """11. The next five steps of stage 1 are those of a session that was not left; T_0, T_1 outlive a resume."""
    straight = steps_of_stage_1(stream, monkeypatch, leave_at=None)
    left = steps_of_stage_1(stream, monkeypatch, leave_at=2)
    assert len(straight) >= 7
    assert all(torch.equal(a, b) for a, b in zip(straight[2:7], left, strict=True))


def steps_of_stage_1(stream: Stream, monkeypatch: pytest.MonkeyPatch, leave_at: int | None) -> list[Tensor]:
    """All that learned, after every step; of the second of two sessions if the first is left."""
    found: list[Tensor] = []

    def run(self: Session[Any], loss: Any) -> None:
        if self.n_steps or leave_at is None or not taught:
            for _ in self.steps(loss):
                found.append(parameters_to_vector(self.learned).detach().clone())
            return
        walk = self.steps(loss)
        for _ in range(leave_at):
            next(walk)
        state = copy.deepcopy(self.state_dict())
        walk.close()
        for p in self.learned:
            p.data.zero_()  # nothing but the state may bring them back
        block = method.blocks_.parts[-1]
        again = Session(self.source, self.config, torch.Generator(), fast=[block, *self.learned[-2:]])
        again.load_state_dict(state)
        steps = again.steps(loss)
        for _ in range(5):
            next(steps)
            found.append(parameters_to_vector(again.learned).detach().clone())
        steps.close()

    taught = False
    with monkeypatch.context() as patch:
        patch.setattr(Session, "run", run)
        method = esn(train={"epochs": 4, "batch_size": 5})
        method.fit_task(stream[0])
        found.clear()
        taught = True
        method.fit_task(stream[1])
    return found


def test_11_temperatures_outlive_a_resume(stream: Stream, tmp_path: Path) -> None:
    """11 and pitfall 9: loaded after stage 1 it goes on as if it had not been left."""
    straight = esn(store=FeatureStore(tmp_path / "a")).fit_task(stream[0]).fit_task(stream[1])
    resumed = esn(store=FeatureStore(tmp_path / "b")).load_state_dict(copy.deepcopy(straight.state_dict()))
    assert resumed.temperatures_ == straight.temperatures_
    assert len(resumed.temperatures_) == 2
    images = pixels(straight, stream.test(0))
    for method in (straight, resumed):
        method.fit_task(stream[2])
    assert torch.equal(straight.scores(images), resumed.scores(images))
    assert torch.equal(straight.predict(stream.test(1)), resumed.predict(stream.test(1)))


@pytest.mark.parametrize(("d", "heads"), [(768, 12), (8, 2)])
def test_12_the_parameters_of_a_stage(d: int, heads: int) -> None:
    """12. 2,964,874 with ten classes at D = 768; 5 d² + 10.5 d + (d + 1) n in general."""
    block = TaskAttention(torch.zeros(d), heads, generator())
    count = sum(p.numel() for p in block.parameters()) + 10 * (d + 1)
    assert count == 5 * d * d + 21 * d // 2 + 10 * (d + 1)
    assert count == {768: 2_964_874, 8: 404 + 90}[d]


def test_12_what_learns_is_what_the_formula_tells(stream: Stream) -> None:
    method = esn(length=3).fit_task(stream[0]).fit_task(stream[1])
    assert method.learned_parameters() == 2 * 404 + 4 * 9 + 3 * 8
