import copy

import literal
import pytest
import torch
from builders import model_of, random_clip

from utils.analysis.segmentation import METHODS, methods, relevance
from utils.cli import UserError

BASELINES = METHODS[1:]


def inputs_for(model, number=3, size=None, seed=1):
    """Images, a classifier of 7 classes and the classes the model predicts."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(number, 3, *(size or model.visual.image_size), generator=generator)
    classifier = torch.nn.functional.normalize(torch.randn(20, 7, generator=generator), dim=0)
    if size is not None:
        return images, classifier, torch.arange(number) % 7
    return images, classifier, (model.encode_image(images) @ classifier).argmax(dim=1)


def batch_of(model, images, classifier, classes):
    return methods.Batch(methods.Explainer(model_of(model.visual), classifier, BASELINES), images, classes)


def close(maps, others, tolerance):
    """Equal up to a part of the largest value, as the maps of some methods are small."""
    torch.testing.assert_close(maps.double(), others.double(), atol=tolerance * others.abs().max().item(), rtol=0)


def test_the_explicit_forward_pass_is_the_models_own(variant):
    _, model = variant
    batch = batch_of(model, *inputs_for(model))
    own = torch.nn.functional.normalize(model.encode_image(batch.images), dim=-1)
    torch.testing.assert_close(relevance.represent(batch.explainer.tower, batch.single.layers[-1].after), own,
                               atol=1e-6, rtol=0)
    assert len(batch.double.layers) == len(batch.single.attentions) == len(batch.explainer.tower.blocks)
    for rows, precise in zip(batch.single.attentions, batch.double.attentions):
        torch.testing.assert_close(rows.double(), precise, atol=1e-5, rtol=0)


def test_every_map_equals_its_definition(variant):
    _, model = variant
    images, classifier, predicted = inputs_for(model)
    visual = copy.deepcopy(model.visual).double()
    slow = [literal.relevance(visual, image.double(), classifier.double()[:, label])
            for image, label in zip(images, predicted)]
    rows, columns = model.visual.grid_size
    batch = batch_of(model, images, classifier, predicted)
    for name in BASELINES:
        maps = methods.FUNCTIONS[name](batch)
        assert maps.shape == (3, rows, columns), name
        assert maps.dtype == torch.float32, name
        assert not maps.requires_grad, name
        assert maps.isfinite().all(), name
        assert maps.amax() > maps.amin(), name
        close(maps.flatten(1), torch.stack([image[name] for image in slow]), 1e-5)


def test_gradients_equal_finite_differences():
    """Of the logit, when the attention weights of one layer move along a random direction."""
    model = random_clip()
    visual = copy.deepcopy(model.visual).double()
    images, classifier, predicted = inputs_for(model)
    gradients = batch_of(model, images, classifier, predicted).double.gradients
    images, classifier = images.double(), classifier.double()
    step = 1e-5
    for index, gradient in enumerate(gradients):
        torch.manual_seed(index)
        for image, column, own in zip(images, classifier.T[predicted], gradient):
            nudges = [torch.zeros_like(own) for _ in gradients]
            nudges[index] = torch.randn_like(own) * step
            above = literal.run_image(visual, image, nudges)[1] @ column
            below = literal.run_image(visual, image, [-nudge for nudge in nudges])[1] @ column
            expected = (own * nudges[index]).sum()
            torch.testing.assert_close((above - below) / 2, expected, atol=1e-7 * step, rtol=1e-5)


def test_relevance_is_conserved_through_every_layer(variant):
    """Biases get none, so that all of the logit's relevance arrives at the first tokens."""
    _, model = variant
    batch = batch_of(model, *inputs_for(model))
    assert len(batch.double.relevances) == len(batch.explainer.tower.blocks)
    for _, tokens in batch.double.relevances:
        torch.testing.assert_close(tokens.sum(dim=(1, 2)), torch.ones(3).double(), atol=1e-5, rtol=0)


def test_rules_by_hand():
    # Products with the first row of weights: 2, -2, 3; with the second: -4, 1, 0.
    x, weight = torch.tensor([[2.0, -1.0, 3.0]]), torch.tensor([[1.0, 2.0, 1.0], [-2.0, -1.0, 0.0]])
    shared = relevance.relevance_of_linear(x, weight, torch.tensor([[10.0, 7.0]]))
    torch.testing.assert_close(shared, torch.tensor([[4.0, 7.0, 6.0]]))
    # 2 * 3 + 1 * 4 = 10.
    left, right = relevance.relevance_of_product(torch.tensor([[2.0, 1.0]]), torch.tensor([[3.0], [4.0]]),
                                                 torch.tensor([[20.0]]))
    torch.testing.assert_close(left, torch.tensor([[6.0, 4.0]]))
    torch.testing.assert_close(right, torch.tensor([[6.0], [4.0]]))
    # Parts in proportion are (3, 4) and (1, -2); sums 7 and -1 are rescaled to 7/8 and 1/8 of the relevance, 6.
    x, y = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[1.0, -2.0]]])
    first, second = relevance.relevance_of_sum(x, y, torch.tensor([[[4.0, 2.0]]]))
    torch.testing.assert_close(first, torch.tensor([[[2.25, 3.0]]]))
    torch.testing.assert_close(second, torch.tensor([[[-0.75, 1.5]]]))


def test_nothing_to_share_out_gives_no_infinities():
    zero = torch.zeros(1, 2, 2)
    assert relevance.relevance_of_linear(zero, torch.ones(2, 2), zero + 1).isfinite().all()
    assert torch.stack(relevance.relevance_of_product(zero, zero, zero + 1)).isfinite().all()
    assert torch.stack(relevance.relevance_of_sum(zero, zero, zero + 1)).isfinite().all()


def test_all_methods_share_two_passes_and_one_copy_of_the_tower(monkeypatch):
    ran, copied, run_layer, deepcopy = [], [], relevance.run_layer, copy.deepcopy
    monkeypatch.setattr(relevance, "run_layer",
                        lambda block, tokens: ran.append(tokens.dtype) or run_layer(block, tokens))
    monkeypatch.setattr(copy, "deepcopy", lambda *given: copied.append(given[0]) or deepcopy(*given))
    model = random_clip()
    images, classifier, predicted = inputs_for(model)
    explainer = methods.Explainer(model_of(model.visual), classifier, METHODS)
    for _ in range(2):
        batch = methods.Batch(explainer, images, predicted)
        first, again = ([methods.FUNCTIONS[name](batch) for name in METHODS] for _ in range(2))
        assert all(torch.equal(*maps) for maps in zip(first, again))
    assert sum(found is model.visual for found in copied) == 1
    assert sorted(map(str, ran)) == ["torch.float32"] * 6 + ["torch.float64"] * 6


@pytest.mark.parametrize("name, whole, gradients", [
    ("lrp", True, False), ("partial_lrp", False, False), ("chefer", True, True)])
def test_one_method_alone_keeps_what_it_needs(name, whole, gradients):
    model = random_clip()
    images, classifier, predicted = inputs_for(model)
    batch = methods.Batch(methods.Explainer(model_of(model.visual), classifier, (name,)), images, predicted)
    alone = methods.FUNCTIONS[name](batch)
    assert torch.equal(alone, methods.FUNCTIONS[name](batch_of(model, images, classifier, predicted)))
    assert len(batch.double.layers) == (len(model.visual.transformer.resblocks) if whole else 1)
    assert batch.double.layers[-1].attention.requires_grad == gradients


@pytest.mark.parametrize("name", BASELINES)
def test_a_batch_of_one_equals_its_place_in_a_larger_batch(name):
    model, method = random_clip(), methods.FUNCTIONS[name]
    images, classifier, predicted = inputs_for(model)
    together = method(batch_of(model, images, classifier, predicted))
    alone = torch.cat([method(batch_of(model, images[i:i + 1], classifier, predicted[i:i + 1])) for i in range(3)])
    close(alone, together, 1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_images_of_another_shape(name):
    model = random_clip()
    images, classifier, predicted = inputs_for(model, number=2, size=(24, 56))
    maps = methods.FUNCTIONS[name](batch_of(model, images, classifier, predicted))
    assert maps.shape == (2, 3, 7)
    assert maps.isfinite().all()


@pytest.mark.parametrize("name", BASELINES)
def test_the_model_is_left_as_it_was(name):
    model, method = random_clip(), methods.FUNCTIONS[name]
    images, classifier, predicted = inputs_for(model)
    before = copy.deepcopy(model.state_dict())
    maps = method(batch_of(model, images, classifier, predicted))
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert not images.requires_grad
    assert torch.is_grad_enabled()
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    with torch.inference_mode():
        torch.testing.assert_close(method(batch_of(model, images + 0, classifier + 0, predicted + 0)), maps)
    with torch.no_grad():
        torch.testing.assert_close(method(batch_of(model, images, classifier, predicted)), maps)
    model.requires_grad_(True)
    torch.testing.assert_close(method(batch_of(model, images, classifier, predicted)), maps)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_which_methods_know_the_class():
    model = random_clip()
    images, classifier, predicted = inputs_for(model)
    batch, other = (batch_of(model, images, classifier, classes) for classes in (predicted, (predicted + 1) % 7))
    same = {name for name in METHODS if torch.equal(methods.FUNCTIONS[name](batch), methods.FUNCTIONS[name](other))}
    assert same == {"raw_attention", "rollout"}


@pytest.fixture(scope="module")
def scenes_of_the_embedded_model():
    """The embedded model, 24 scenes, where their objects are [24, 8, 8], and the concepts' classifier."""
    from PIL import Image

    from utils.analysis import zeroshot
    from utils.data import scenes
    from utils.models.loading import load

    clip = load("emojiclip", None, torch.device("cpu"))
    drawn = scenes.sample_scenes(24, seed=11)
    images, masks = scenes.draw(drawn, 64)
    images = torch.stack([clip.preprocess(Image.fromarray(image)) for image in images.permute(0, 2, 3, 1).numpy()])
    names = [concept["name"] for concept in scenes.concepts()]
    classifier = torch.from_numpy(zeroshot.classifier(clip, names, [lambda name: f"a drawing of a {name}"], 64))
    where = torch.nn.functional.avg_pool2d(masks[:, None].float(), 8)[:, 0]
    return clip.network, images, classifier, torch.tensor([scene.object for scene in drawn]), where


@pytest.mark.parametrize("name", BASELINES)
def test_the_embedded_models_objects_are_found(name, scenes_of_the_embedded_model):
    model, images, classifier, labels, where = scenes_of_the_embedded_model
    maps = methods.FUNCTIONS[name](batch_of(model, images, classifier, labels))
    assert maps.shape == where.shape
    assert maps.isfinite().all()
    inside = (maps * where).sum(dim=(1, 2)) / where.sum(dim=(1, 2))
    outside = (maps * (1 - where)).sum(dim=(1, 2)) / (1 - where).sum(dim=(1, 2))
    spread = maps.std(dim=(1, 2)).clamp(min=1e-9)  # GradCAM's map can be all zero
    assert ((inside - outside) / spread).mean() > 0.3


def test_an_unknown_inside_is_refused():
    model = random_clip(vision_cfg={"pool_type": "avg"})
    with pytest.raises(UserError, match="this model has --method decomposition alone"):
        methods.Explainer(model_of(model.visual, (32, 32)), torch.zeros(20, 7), ("rollout",))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: relevance on a GPU was not covered")
@pytest.mark.parametrize("name", BASELINES)
def test_a_gpu_gives_the_same_maps(name):
    model, method = random_clip(), methods.FUNCTIONS[name]
    images, classifier, predicted = inputs_for(model)
    here = method(batch_of(model, images, classifier, predicted))
    there = method(batch_of(model.cuda(), images.cuda(), classifier.cuda(), predicted.cuda()))
    close(there.cpu(), here, 1e-4)
