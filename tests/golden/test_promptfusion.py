"""The numbered golden tests of PromptFusion's specification, section 12, and its pitfalls."""

from __future__ import annotations

import dataclasses as dc
import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from perdure import FeatureStore
from perdure.backbone import TwoTowers
from perdure.backbone.clip import tiny_clip
from perdure.backbone.contexts import vectors_of_words
from perdure.backbone.tiny import TINY
from perdure.checks import check_method
from perdure.checks.subject import CLASS_IDS, named_task, pixels, small_stream
from perdure.config import laid_over
from perdure.data.preprocess import Preprocess
from perdure.data.stream import Candidate
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import BackboneError, CheckpointError, ConfigError, RecipeError, RunDirectoryError, StreamError
from perdure.methods import promptfusion
from perdure.methods.promptfusion import PromptFusion, PromptFusionConfig
from perdure.modules.score_fusion import ClassWeights, Gate, LearnedShare, Lite
from perdure.run import Recipe, Runner
from perdure.train.class_contexts import ClassContexts
from perdure.train.session import Session
from tiny_clip import clip


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=rng(seed))


def made(store: FeatureStore, backbone: TwoTowers | None = None, **settings: Any) -> PromptFusion:
    config = PromptFusionConfig(**laid_over(PromptFusion.tags.small, settings))
    return PromptFusion(backbone or clip(), config, store=store)


def taught(method: PromptFusion, n_tasks: int = 2) -> PromptFusion:
    for task in small_stream()[method.tasks_seen_ : n_tasks]:
        method.fit_task(task)
    return method


# --- 1: the learned share


def test_01_two_scores_are_added_by_a_learned_share() -> None:
    share, stable, boost = LearnedShare("code"), draw(3, 4), draw(3, 4, seed=1)
    torch.testing.assert_close(share(stable, boost), 0.268941 * stable + 0.731059 * boost)
    torch.testing.assert_close(LearnedShare("figure")(stable, boost), 0.731059 * stable + 0.268941 * boost)
    for balance in (0.0, 1.0):
        share.balance = nn.Parameter(torch.tensor([balance]))
        share(stable, boost).sum().backward()
        s = 1 / (1 + math.exp(-balance))
        torch.testing.assert_close(share.balance.grad, s * (1 - s) * (boost - stable).sum()[None])
    share.balance = nn.Parameter(torch.zeros(1))
    torch.testing.assert_close(share(stable, boost), (stable + boost) / 2)


# --- 2 to 5: weights of classes in the loss


def weights(task: int, n_old: int, n_new: int, rows: int = 1) -> ClassWeights:
    return ClassWeights(task, n_old, n_new, torch.zeros(rows, 0))


def of_loss_1(wrong: int) -> Tensor:
    """Logits of two classes, whose cross-entropy is 1 if the other class is true."""
    row = torch.zeros(2)
    row[wrong] = math.log(math.e - 1)
    return row


def test_02_what_old_and_new_classes_weigh() -> None:
    assert weights(1, 1, 1)()[0].tolist() == pytest.approx([0.683940, 0.731059], abs=1e-6)
    assert weights(9, 1, 1)()[0].tolist() == pytest.approx([6.155457, 0.731059], abs=1e-6)
    logits, columns = torch.stack([of_loss_1(1), of_loss_1(0)]), torch.tensor([0, 1])
    assert weights(1, 1, 1).loss(logits, columns).item() == pytest.approx(0.707499, abs=1e-6)
    assert weights(0, 0, 2).loss(logits, columns).item() == pytest.approx(1.0, abs=1e-6), "plain in the first task"


def test_03_a_weight_stands_before_its_images_loss() -> None:
    logits, columns = draw(5, 4).requires_grad_(), torch.tensor([0, 3, 1, 2, 3])
    part = weights(3, 2, 2)
    part.loss(logits, columns).backward()
    w = part()[0, columns].detach()
    errors = logits.detach().softmax(1) - torch.eye(4)[columns]
    torch.testing.assert_close(logits.grad, w[:, None] * errors / 5)


def test_04_weights_can_only_shrink() -> None:
    part = weights(2, 2, 2)
    part.loss(draw(4, 4), torch.arange(4)).backward()
    assert bool((part.alpha.grad > 0).all())  # type: ignore[operator]
    assert bool((part.beta.grad < 0).all())  # type: ignore[operator]
    assert weights(0, 0, 2).learned_alpha.shape == (1, 0), "untouched in the first task"
    kept = ClassWeights(3, 1, 3, torch.tensor([[0.5, 0.25]])).alpha
    assert kept.tolist() == [[0.5, 0.25, 1.0]], "alpha goes on, place by place"
    assert ClassWeights(3, 1, 1, torch.tensor([[0.5, 0.25]])).learned_alpha.tolist() == [[0.5]]


@pytest.mark.parametrize(("rows", "matters"), [(1, False), (4, True)])
def test_05_places_in_a_batch_have_weights_of_their_own_only_as_published(rows: int, matters: bool) -> None:
    part, logits, columns = weights(2, 2, 2, rows), draw(4, 4), torch.arange(4)
    part.alpha = nn.Parameter(draw(rows, 2, seed=1))
    part.beta = nn.Parameter(draw(rows, 2, seed=2))
    there, back = part.loss(logits, columns), part.loss(logits.flip(0), columns.flip(0))
    assert (abs((there - back).item()) > 1e-4) == matters
    assert part.loss(logits[:2], columns[:2]).isfinite(), "a batch may be smaller"


# --- 6 and 7: texts


def test_06_old_texts_are_kept_and_not_encoded_anew(store: FeatureStore) -> None:
    backbone, contexts = tiny_clip(), []

    class Seen(ClassContexts):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            contexts.append(self)

    stream = small_stream()
    with mock.patch.object(promptfusion, "ClassContexts", Seen):
        method = made(store, backbone, train={"epochs": 3, "batch_size": 16}).fit_task(stream[0])
        vectors, texts, before = contexts[0].vectors.detach().clone(), method.texts_.clone(), backbone.passes.texts
        method.fit_task(stream[1])
    n_steps = 3 * 2  # 12 new images and 12 old ones
    assert backbone.passes.texts - before == 2 * (n_steps + 1), "two new classes in every step and at the end"
    assert torch.equal(contexts[0].vectors, vectors)
    assert torch.equal(method.texts_[:2], texts)
    with torch.no_grad():
        torch.testing.assert_close(contexts[0](), texts, atol=1e-6, rtol=0)
    assert not torch.equal(contexts[1].vectors, vectors)


def test_07_a_classs_own_words_give_its_plain_embedding() -> None:
    backbone, names = clip(), ["cat", "very large dog"]
    words = vectors_of_words(backbone.text, "a photo of a")
    own = ClassContexts(backbone, names, 4, False, rng())
    assert own.vectors.std().item() == pytest.approx(0.01, rel=0.2)
    own.vectors = nn.Parameter(words.expand(2, -1, -1))
    plain = backbone.text_embeddings([f"a photo of a {name}." for name in names])
    with torch.no_grad():
        torch.testing.assert_close(own(), nn.functional.normalize(plain), atol=1e-6, rtol=0)
        ends = [int(part._texts.ids.argmax(1)[0]) for part in (own, ClassContexts(backbone, names, 4, True, rng()))]
    assert ends == [1 + 4 + 1 + 1, 1 + 2 * 4 + 1 + 1], "start, vectors, placeholders, name, full stop"
    assert ClassContexts(backbone, [], 4, False, rng())().shape == (0, 48)


# --- 8 and 9: prompts in both towers


@pytest.mark.parametrize("name", ["clip_prompt", "booster_prompt", "context"])
def test_08_no_prompt_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"{name} must be greater than or equal to 1, but got 0"):
        PromptFusionConfig(**{name: 0})


def test_08b_images_are_read_off_prompts_alone(store: FeatureStore) -> None:
    prompts = made(store).prompts_
    pair = prompts.embedded(pixels(made(store), small_stream().test(0))[:2])
    for tower, read, tokens in zip(prompts.towers, (prompts.embeddings, prompts.features), pair, strict=True):
        outs: list[Tensor] = []
        hook = tower.vit.blocks[-1].register_forward_hook(lambda _, __, out, outs=outs: outs.append(out))
        found = read(tokens)
        hook.remove()
        (grad,) = torch.autograd.grad(found.square().sum(), outs)
        assert not grad[:, :1].any(), "the class token"
        assert not grad[:, 3:].any(), "patches"
        assert bool(grad[:, 1:3].any(2).all())


def test_09_booster_prompts_stand_where_the_class_token_does(store: FeatureStore) -> None:
    method, seen = made(store), []
    clip_, booster = method.prompts_.towers
    pair = method.prompts_.embedded(pixels(method, small_stream().test(0))[:2])
    for tower, read, tokens in (
        (clip_, method.prompts_.embeddings, pair[0]),
        (booster, method.prompts_.features, pair[1]),
    ):
        hook = tower.vit.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        read(tokens)
        hook.remove()
    torch.testing.assert_close(seen[0][0, 1:3], method.prompts_.first.detach())
    placed = method.prompts_.second.detach() + booster.vit.pos_embed[0, 0]  # type: ignore[index]
    torch.testing.assert_close(seen[1][0, 1:3], placed)
    assert not booster.vit.pos_embed.requires_grad  # type: ignore[union-attr]
    at_start = made(store, clip_prompt=100, booster_prompt=100).prompts_
    assert at_start.first.std().item() == pytest.approx(1.0, rel=0.1)
    assert (at_start.second.min().item(), at_start.second.max().item()) == pytest.approx((-1, 1), abs=0.01)


def test_09b_a_booster_without_a_class_token_has_no_place_for_prompts(store: FeatureStore) -> None:
    method, seen = made(store), []
    booster = method.booster
    vit = booster.vit
    pair = method.prompts_.embedded(pixels(method, small_stream().test(0))[:2])
    with mock.patch.object(vit, "no_embed_class", True):
        hook = vit.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        method.prompts_.features(pair[1])
        hook.remove()
    torch.testing.assert_close(seen[0][0, 1:3], method.prompts_.second.detach())


# --- 10: the gate


def gate(**settings: Any) -> Gate:
    return Gate(3, Lite(**settings), rng())


def test_10_a_gate_adds_the_boosters_scores_or_leaves_them_out() -> None:
    part, unit, stable, boost = gate(), torch.eye(3), draw(3, 4), draw(3, 4, seed=1)
    for always in (True, False):
        part.out.bias = nn.Parameter(torch.tensor([1e4, -1e4]) * (1 if always else -1))
        z, _ = part.trained(unit, stable, boost, None, rng())
        assert torch.equal(z, stable + boost if always else stable)
        asked = part.asks(5 * unit)
        assert asked.tolist() == [always] * 3
        assert torch.equal(part.tested(stable, boost[asked], asked), z)
    assert part.tested(stable, boost[:0], asked).shape == (3, 4)
    mixed = part.tested(stable, boost[:1], torch.tensor([False, True, False]))
    assert torch.equal(mixed, torch.stack([stable[0], stable[1] + boost[0], stable[2]]))


def test_10b_a_gate_is_hard_forward_and_soft_backward() -> None:
    part = gate(temperature=3.0)
    logits = draw(200, 2).requires_grad_()
    drawn = part.drawn(logits, rng())
    assert set(drawn.tolist()) == {0.0, 1.0}
    drawn.sum().backward()
    noise = -torch.empty(200, 2).exponential_(generator=rng()).log()
    soft = ((logits.detach() + noise) / 3).softmax(1)[:, 0]
    torch.testing.assert_close(logits.grad[:, 0], soft * (1 - soft) / 3)  # type: ignore[index]
    assert torch.equal(drawn.detach(), (soft >= 0.5).float())
    often = part.drawn(torch.tensor([[math.log(3.0), 0.0]]).expand(20000, -1), rng()).mean()
    assert float(often) == pytest.approx(0.75, abs=0.01), "Gumbel's maximum draws by the softmax of the logits"


def test_10c_a_gate_is_held_to_a_rate_and_to_the_last_tasks_gate() -> None:
    part, asked, logits = gate(rate=0.4, rate_weight=0.3, distil=0.1), torch.tensor([1.0, 1, 0, 0, 0]), draw(5, 2)
    assert float(part.loss(asked, logits, None)) == pytest.approx(0.0, abs=1e-6)
    assert float(part.loss(torch.ones(5), logits, None)) == pytest.approx(0.3 * 0.36, abs=1e-6)
    before = draw(5, 2, seed=1)
    p, q = (before / 2).softmax(1), (logits / 2).softmax(1)
    divergence = float((p * (p / q).log()).sum() / 5)
    assert float(part.loss(asked, logits, before)) == pytest.approx(0.1 * divergence, abs=1e-6)
    assert float(part.loss(asked, logits, logits)) == pytest.approx(0.0, abs=1e-6)
    assert sum(p.numel() for p in Gate(512, Lite(), rng()).parameters()) == 51_300 + 202


def test_10d_the_last_tasks_gate_teaches_without_gradient() -> None:
    part, before, unit = gate(), Gate(3, Lite(), rng(1)), torch.eye(3).requires_grad_()
    _, more = part.trained(unit, draw(3, 4), draw(3, 4, seed=1), before, rng())
    more.backward()
    assert all(p.grad is None for p in before.parameters())
    assert all(p.grad is not None for p in part.parameters())


def test_10f_the_teacher_is_the_gate_as_the_last_task_left_it(store: FeatureStore) -> None:
    method, taught_by = made(store, lite={"hidden": 8}), []
    real = Gate.trained

    def looked(self: Gate, unit: Tensor, stable: Tensor, boost: Tensor, before: Gate | None, rng: Any) -> Any:
        taught_by.append(None if before is None else before.out.weight.clone())
        return real(self, unit, stable, boost, before, rng)

    with mock.patch.object(Gate, "trained", looked):
        taught(method, 1)
        left = method.fusion_.state_dict()["out.weight"].clone()
        n_first = len(taught_by)
        taught(method)
    assert taught_by[:n_first] == [None] * n_first
    assert len(taught_by) > n_first
    assert all(torch.equal(weight, left) for weight in taught_by[n_first:])
    assert not torch.equal(method.fusion_.state_dict()["out.weight"], left)


def test_10e_an_image_passes_the_booster_only_if_its_gate_asks(store: FeatureStore) -> None:
    backbone = tiny_clip()
    method = taught(made(store, backbone, lite={"hidden": 8}))
    images, gate_ = pixels(method, small_stream().test(0)), method.fusion_
    assert isinstance(gate_, Gate)
    with torch.no_grad():
        logits = gate_(method.prompts_(method.prompts_.embedded(images))[0])
    middle = float((logits[:, 0] - logits[:, 1]).median())  # a gate that asks for about one image out of two
    gate_.out.bias = nn.Parameter(gate_.out.bias.data - torch.tensor([middle, 0.0]))
    before = backbone.passes.images
    scores = method.scores(images)
    assert 0 < backbone.passes.images - before - len(images) < len(images)
    assert torch.equal(scores, method.scores(images)), "no noise"
    assert torch.equal(scores, torch.cat([method.scores(image[None]) for image in images]))
    for bias, n in ((1e4, len(images)), (-1e4, 0)):
        gate_.out.bias = nn.Parameter(torch.tensor([bias, 0.0]))
        before = backbone.passes.images
        assert method.scores(images).isfinite().all()
        assert backbone.passes.images - before == len(images) + n


# --- 11 and 12


def test_11_a_softmax_has_the_columns_of_classes_seen(store: FeatureStore) -> None:
    widths: list[int] = []
    real = ClassWeights.loss

    def looked(self: ClassWeights, logits: Tensor, columns: Tensor) -> Tensor:
        widths.append(logits.shape[1])
        return real(self, logits, columns)

    with mock.patch.object(ClassWeights, "loss", looked):
        method = taught(made(store), 3)
    assert sorted(set(widths)) == [2, 4, 6]
    assert method.head_.weight.shape == (6, 64)
    assert method.texts_.shape == (6, 48)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("lite", [None, {"hidden": 8}])
def test_12_a_task_that_was_stopped_goes_on_with_the_same_bits(store: FeatureStore, lite: Any) -> None:
    settings: dict[str, Any] = {"lite": lite, "train": {"epochs": 2, "batch_size": 8}}
    straight, kept = taught(made(store, **settings)), {}
    method = taught(made(store, **settings), 1)

    def stopping(self: Session[Any], loss: Any) -> None:
        for step in self.steps(loss):
            if step == 4:
                kept.update(self.state_dict())
                raise Stopped

    def going_on(self: Session[Any], loss: Any) -> None:
        self.load_state_dict(kept)
        for _ in self.steps(loss):
            pass

    with mock.patch.object(Session, "run", stopping), pytest.raises(Stopped):
        taught(method)
    with mock.patch.object(Session, "run", going_on):
        taught(method)
    images = pixels(method, small_stream().test(0))
    assert torch.equal(method.scores(images), straight.scores(images))
    assert torch.equal(method.alpha_, straight.alpha_)


def test_12b_only_weights_by_row_hold_to_their_batch_size(store: FeatureStore) -> None:
    state = taught(made(store)).state_dict()
    taught(made(store, train={"batch_size": 5}).load_state_dict(state), 3)
    rows = taught(made(store, weights="row"))
    assert rows.alpha_.shape == (8, 2)
    with pytest.raises(CheckpointError, match=r"alpha_ must be float32 of shape \(rows, new\) = \(5, any\), but got"):
        made(store, weights="row", train={"batch_size": 5}).load_state_dict(rows.state_dict())


# --- the second backbone


def test_passes_of_both_towers_are_counted(store: FeatureStore) -> None:
    backbone = tiny_clip()
    method, stream = made(store, backbone, train={"epochs": 2}), small_stream()
    method.fit_task(stream[0])
    assert backbone.passes.images == 12 * (2 * 2 + 1), "two epochs through both, and herding through one"
    before = backbone.passes.images
    list(method.scores_of(stream.test(0)))
    assert backbone.passes.images - before == 2 * len(stream.test(0))


@pytest.mark.parametrize(
    "other",
    [{"booster": {"name": "test_vit", "pretrained": False, "init_seed": 1}}, {"booster_view": "shared"}],
)
def test_a_state_is_refused_on_another_booster(store: FeatureStore, other: dict[str, Any]) -> None:
    method = taught(made(store), 1)
    with pytest.raises(CheckpointError, match=rf"booster_ .* but got '{method.booster_}'"):
        made(store, **other).load_state_dict(method.state_dict())


def test_a_run_names_its_booster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "load_backbone", lambda self: tiny_clip())
    small = {**PromptFusion.tags.small, "name": "promptfusion", "train": {"epochs": 1}}
    values = {"stream": {"data": "synthetic", "tasks": 2}, "backbone": {"name": "clip_default"}, "method": small}
    results = Runner(Recipe.from_values(values), tmp_path / "run").run()
    booster = made(FeatureStore(tmp_path / "features")).booster.identity
    assert results.provenance.fingerprints["booster"] == booster
    assert results.fairness is not None
    assert (results.fairness.towers, results.fairness.class_names) == (3, True)
    other = laid_over(values, {"method": {"booster": {"init_seed": 1}}})
    with pytest.raises(RunDirectoryError, match=f"fingerprints.booster = '{booster}' there"):
        Runner(Recipe.from_values(other), tmp_path / "run").run()
    n_train, n_test = 5 * 6 * 2, 3 * 6
    cost = results.cost
    assert cost.passes_per_test_image > 2 * n_test / n_test
    assert cost.passes_per_train_image > 2 + n_train / n_train


def test_towers_that_take_no_prompts_are_refused_before_any_work(store: FeatureStore) -> None:
    model = TINY["any"]().model
    with torch.random.fork_rng(devices=[]):
        model.reset_classifier(48)
    blind = TwoTowers(model, name="no ViT", preprocess=Preprocess(64), text=tiny_clip().text, logit_scale=10.0)
    with pytest.raises(BackboneError, match=r"backbone must be a timm VisionTransformer, but got 'no ViT \(Efficient"):
        made(store, blind)
    with pytest.raises(BackboneError, match=r"backbone must be a timm VisionTransformer, but got 'test_efficientnet"):
        made(store, booster={"name": "test_efficientnet.r160_in1k", "pretrained": False})


def test_names_and_memories_that_do_not_fit_are_refused_before_anything_is_learned(store: FeatureStore) -> None:
    task = small_stream()[0]
    method = made(store, context=76)
    with pytest.raises(BackboneError, match=r"text must be of at most 77 tokens, but got 'X X .* pattern 100\.'"):
        method.fit_task(task)
    with pytest.raises(BackboneError, match="of at most 77 tokens, but got 'X X "):
        made(store, context=37, keep_placeholders=True).require_names([Candidate("a", "a b c d")])
    made(store, context=37).require_names([Candidate("a", "a b c d")])
    few = made(store, n_images=1)
    full = pytest.raises(ConfigError, match="n_images must be enough for one image of each of 2 classes, but got 1")
    with full, mock.patch.object(Session, "run", side_effect=AssertionError("trained")):
        few.fit_task(task)
    with pytest.raises(StreamError, match="name of class 'CAT' must be like no other class's, but got 'CAT'"):
        few.require_names([Candidate("cat", "cat"), Candidate("CAT", "CAT")])
    assert (method.classes_, few.classes_, few.tasks_seen_) == ([], [], 0)


def test_a_task_without_new_classes_trains_all_but_texts(store: FeatureStore) -> None:
    method = taught(made(store))
    texts, prompt = method.texts_.clone(), method.prompts_.first.detach().clone()
    again = synthetic_dataset(CLASS_IDS[:4], train_per_class=3, seed=1)
    method.fit_task(named_task(2, again.train, CLASS_IDS[:4]))
    assert torch.equal(method.texts_, texts)
    assert not torch.equal(method.prompts_.first, prompt)
    assert method.alpha_.shape == (1, 0)


def test_what_is_learned_is_counted(store: FeatureStore) -> None:
    method = taught(made(store))
    prompts, head, texts = 2 * 64 + 2 * 64, 4 * 64 + 4, 4 * 48
    assert method.learned_parameters() == prompts + head + texts + 1
    gated = taught(made(store, lite={"hidden": 8}))
    assert gated.learned_parameters() == prompts + head + texts + (48 * 8 + 8) + (8 * 2 + 2)


ON_LITE = [
    "check_what_is_learned_depends_on_the_images", "check_everything_learned_is_used",
    "check_batch_does_not_matter", "check_whole_data_equals_batches", "check_state_round_trip",
    "check_resumed_equals_straight", "check_threads_do_not_matter", "check_state_is_declared",
    "check_refused_state_changes_nothing",
]  # fmt: skip


def test_the_lite_form_keeps_its_promises_too() -> None:
    class LiteForm(PromptFusion):
        tags = dc.replace(PromptFusion.tags, small=laid_over(PromptFusion.tags.small, {"lite": {"hidden": 8}}))

    assert {result.name: result.error for result in check_method(LiteForm, only=ON_LITE) if result.error} == {}


@pytest.mark.parametrize(
    ("preset", "epochs", "lr", "decay", "tokens", "rate"),
    [
        ("official", 3, 2e-3, 1e-4, (30, 30, 30), None),
        ("official_imagenet_r", 5, 3e-3, 1e-2, (30, 40, 20), None),
        ("official_lite", 3, 2e-3, 1e-3, (30, 30, 30), (0.4, 0.3, 0.1)),
        ("official_lite_imagenet_r", 5, 3e-3, 1e-2, (30, 40, 20), (0.4, 0.7, 0.1)),
    ],
)
def test_published_variants(
    preset: str, epochs: int, lr: float, decay: float, tokens: tuple[int, ...], rate: tuple[float, ...] | None
) -> None:
    c = PromptFusionConfig(preset=preset)
    assert (c.train.epochs, c.train.lr, c.train.optimizer.weight_decay, c.train.batch_size) == (epochs, lr, decay, 32)
    assert (c.train.clip_norm, c.train.drop_last, c.train.optimizer.name) == (1.0, "always", "adamw")
    factors = [c.train.schedule.factor(0, 1, e, epochs) for e in range(epochs)]
    expected = {3: [1, 0.75, 0.25], 5: [1, 0.9045, 0.6545, 0.3455, 0.0955]}
    assert factors == pytest.approx(expected[epochs], abs=1e-4)
    assert (c.context, c.clip_prompt, c.booster_prompt, c.n_images) == (*tokens, 5000)
    assert (c.booster_view, c.keep_placeholders, c.weights, c.fusion_sign) == ("shared", True, "row", "code")
    assert c.booster.name == "vit_base_patch16_224.orig_in21k"
    lite = c.lite and (c.lite.rate, c.lite.rate_weight, c.lite.distil)
    assert lite == rate
    assert c.lite is None or (c.lite.temperature, c.lite.hidden) == (3.0, 100)


def test_the_published_size_of_what_learns_in_the_first_task() -> None:
    """CIFAR-100's first ten classes on ViT-B/16: with rows of weights and, as released, a head of 100 classes."""
    contexts, prompts, head, balance = 10 * 30 * 512, 2 * 30 * 768, 100 * 768 + 100, 1
    alpha = ClassWeights(0, 0, 10, torch.zeros(32, 0)).alpha.numel()
    assert contexts + prompts + head + balance + alpha == 276_901


def test_what_looks_at_whole_batches_gets_them_whole() -> None:
    with pytest.raises(RecipeError, match="accumulate must be 1, but got 2"):
        PromptFusionConfig(train={"accumulate": 2})
