import pytest
import torch
import torch.nn.functional as F
from builders import (
    FAMILIES,
    MAXVIT,
    SWIN,
    VARIANTS,
    VIT,
    images_for,
    move,
    random_clip,
    random_images,
    random_timm,
    representation_of,
)
from open_clip.timm_model import TimmModel
from torch import nn
from torch.autograd import forward_ad

from utils.cli import UserError
from utils.decompose import tower as decomposition
from utils.decompose.walk import decompose


@pytest.fixture(params=list(FAMILIES))
def family(request):
    """Each family in turn: (name, model, its representation, images)."""
    name, changes = FAMILIES[request.param]
    model = random_timm(name, changes)
    return request.param, model, representation_of(request.param, model), random_images(changes["img_size"])


def test_components_sum_to_the_models_own_representation(family):
    _, model, function, images = family
    found = decompose(model, images, function)
    own = F.normalize(function(images), dim=-1)
    assert found.terms.dtype == torch.float32 and found.terms.shape == (3, len(found.names), own.shape[1])
    torch.testing.assert_close(found.representation, own, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.terms.sum(dim=1), own, atol=2e-6, rtol=0)
    assert found.names[0].kind == "embed" and [name.kind for name in found.names].count("embed") == 1
    assert len(set(found.names)) == len(found.names)


class Literal:
    """The definition, in double precision: what a component wrote, through the rest of the model with statistics and attention
    weights detached and every later component held fixed, by forward differentiation."""

    def __init__(self, model: nn.Module, function, images, monkeypatch):
        self.model, self.function, self.images = model.double(), function, images.double()
        self.writers: list[tuple[str, str]] = []  # (kind, module), as they run
        self.ran: list[str] = []                  # all modules, as they run
        for name, module in model.named_modules():
            module.register_forward_hook(lambda *_, name=name: self.ran.append(name))
            kind = {"attn": "attn", "attn_block": "attn", "attn_grid": "attn", "mlp": "mlp", "conv3_1x1": "conv"}
            kind = kind.get(name.rsplit(".", 1)[-1])
            if kind and not (kind == "attn" and not hasattr(module, "num_heads")):
                module.register_forward_hook(self.hold(kind, name))
            if kind == "attn" and hasattr(module, "num_heads"):
                module.proj.register_forward_pre_hook(
                    lambda _, args, module=module: setattr(module, "heads_output", args[0].detach()))
        monkeypatch.setattr(F, "layer_norm", self.layer_norm)
        monkeypatch.setattr(F, "scaled_dot_product_attention", self.attention)
        softmax = F.softmax
        monkeypatch.setattr(F, "softmax", lambda x, dim, **options: softmax(x, dim).detach())
        self.direction = self.through = None
        with torch.no_grad():
            self.length = self.function(self.images).norm(dim=-1, keepdim=True)

    def hold(self, kind, name):
        def hook(module, args, out):
            if self.direction is None:
                self.writers.append((kind, name))
            if name == self.through:
                return out
            return self.tangent(module, args, out) if self.direction and self.direction[0] == name else out.detach()
        return hook

    def tangent(self, module, args, out):
        return forward_ad.make_dual(out.detach(), self.direction[1](module, args, out.detach()))

    @staticmethod
    def layer_norm(x, shape, weight=None, bias=None, eps=1e-5):
        dims = list(range(-len(shape), 0))
        variance, mean = torch.var_mean(x.detach(), dim=dims, correction=0, keepdim=True)
        normed = (x - mean) / (variance + eps).sqrt()
        normed = normed if weight is None else normed * weight
        return normed if bias is None else normed + bias

    @staticmethod
    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
        scores = q @ k.transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)
        return (scores if attn_mask is None else scores + attn_mask).softmax(dim=-1).detach() @ v

    def effect(self, name: str, direction) -> torch.Tensor:
        """What the output of a module changes in the unit representation, in a direction(module, inputs, output)."""
        self.direction, extra = (name, direction), []
        module = self.model.get_submodule(name)
        if not any(name == writer for _, writer in self.writers):
            extra.append(module.register_forward_hook(lambda *call: self.tangent(*call)))
        with forward_ad.dual_level(), torch.no_grad():
            change = forward_ad.unpack_dual(self.function(self.images)).tangent
        for hook in extra:
            hook.remove()
        return (torch.zeros_like(self.length) if change is None else change) / self.length


def written(module, args, out):
    return out


def constant_part(module, args, out):
    """What a module on the residual path adds that none of the components wrote: its bias, and a LayerNorm's mean."""
    x = args[0].detach()
    if not hasattr(module, "normalized_shape"):
        return (module.bias if isinstance(module, nn.Linear) else module.bias[:, None, None]).expand_as(out)
    if type(module).__name__ == "LayerNorm2d":
        x = x.permute(0, 2, 3, 1)
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    part = (module.bias - mean / (variance + module.eps).sqrt() * module.weight).expand(x.shape)
    return part.permute(0, 3, 1, 2) if type(module).__name__ == "LayerNorm2d" else part


def written_by_head(head: int):
    """What one head writes: its slice of the output projection, and an even part of the bias."""
    def direction(module, args, out):
        x, number = module.heads_output, module.num_heads
        dim = 1 if x.ndim == 4 and isinstance(module.proj, nn.Conv2d) else -1
        width = x.shape[dim] // number
        alone = torch.zeros_like(x)
        alone.narrow(dim, head * width, width).copy_(x.narrow(dim, head * width, width))
        whole, none = module.proj(alone), module.proj(torch.zeros_like(x))
        return (whole - none + none / number).view_as(out)
    return direction


SWIN_NORMS = ["layers.1.downsample.norm", "layers.2.downsample.norm", "norm"]
CONSTANTS = {  # the modules on the residual path that add one
    **{name: ["norm"] for name in ("vit", "vit_average_norm_first", "vit_oblong", "vit_qk_norm", "deit", "deit3",
                                   "deit_distilled", "dino", "dinov2", "dinov2_registers", "dinov2_swiglu", "clip", "maxvit")},
    "vit_average": ["fc_norm"],
    "siglip": ["norm", "attn_pool.kv", "attn_pool.proj"],
    "swin": SWIN_NORMS,
    "swin_padded": SWIN_NORMS,
    "swinv2": SWIN_NORMS + [f"layers.{stage}.blocks.{block}.{norm}" for stage, depth in enumerate(SWIN["depths"])
                            for block in range(depth) for norm in ("norm1", "norm2")],
    "maxvit_tf": [f"stages.{i}.blocks.0.conv.shortcut.expand" for i in (0, 1)],
}


@pytest.mark.parametrize("name", list(CONSTANTS))
def test_every_term_equals_its_definition(name, monkeypatch):
    """The last MLP, every head, every convolution block: each term of each family, the embedding as well."""
    timm_name, changes = FAMILIES[name]
    model, images = random_timm(timm_name, changes), random_images(changes["img_size"], 2)
    found = decompose(model, images, representation_of(name, model))
    literal = Literal(model, representation_of(name, model), images, monkeypatch)
    layers = [("embed", None), *literal.writers]
    constants = [torch.zeros_like(literal.length) for _ in layers]
    for added in CONSTANTS[name]:
        passing = [layer for layer, (_, writer) in enumerate(layers)
                   if writer is None or literal.ran.index(writer) < literal.ran.index(added)]
        if added.endswith(("norm1", "norm2")):  # Swin V2 norms what a layer writes: it alone passes there
            passing = passing[-1:]
        part = literal.effect(added, constant_part)
        for layer in passing:
            constants[layer] = constants[layer] + part / len(passing)
    expected = []
    for (kind, writer), constant in zip(layers, constants):
        if kind == "attn":
            number = model.get_submodule(writer).num_heads
            expected += [literal.effect(writer, written_by_head(head)) + constant / number for head in range(number)]
        elif kind != "embed":
            expected.append(literal.effect(writer, written) + constant)
    others = torch.stack(expected, dim=1)
    assert [name.kind for name in found.names[1:]] == [
        kind for kind, writer in layers[1:] for _ in range(model.get_submodule(writer).num_heads if kind == "attn" else 1)]
    torch.testing.assert_close(found.terms[:, 1:].double(), others, atol=1e-5, rtol=0)
    blocks = {"vit": "blocks.0", "siglip": "blocks.0", "swin": "layers.0", "swinv2": "layers.0"}.get(name)
    if blocks:  # the embedding is what enters the first block
        first = model.get_submodule(blocks)
        hook = first.register_forward_pre_hook(lambda module, args: (forward_ad.make_dual(args[0], args[0].clone()),))
        literal.direction = ("", None)
        with forward_ad.dual_level(), torch.no_grad():
            embed = forward_ad.unpack_dual(literal.function(literal.images)).tangent / literal.length + constants[0]
        hook.remove()
        torch.testing.assert_close(found.terms[:, 0].double(), embed, atol=1e-5, rtol=0)


def test_an_open_clip_tower_gives_the_terms_of_the_decomposition_written_for_it(variant):
    _, model = variant
    images = torch.randn(3, 3, *model.visual.image_size)
    tower = decomposition.read_tower(model.visual)
    terms, tokens = decomposition.decompose(tower, images), decomposition.decompose_tokens(tower, images)
    found, first = decompose(model.visual, images, sources="all"), decompose(model.visual, images, sources="first")
    kinds = torch.tensor([name.kind == "attn" for name in found.names])
    torch.testing.assert_close(found.terms[:, kinds], terms.attn.flatten(1, 2), atol=2e-6, rtol=0)
    torch.testing.assert_close(found.terms[:, ~kinds], terms.mlp, atol=2e-6, rtol=0)
    torch.testing.assert_close(sum(found.sources.values()), tokens.attn, atol=2e-6, rtol=0)
    for layer, some in found.sources.items():
        torch.testing.assert_close(some.sum(dim=1), terms.attn[:, layer].sum(dim=1), atol=2e-6, rtol=0)
    class_token = torch.cat([first.sources[layer] for layer in range(len(first.sources))], dim=1)
    torch.testing.assert_close(class_token, terms.cls_attn, atol=2e-6, rtol=0)


def test_source_tokens_of_chosen_heads():
    model = random_clip(**VARIANTS["layer_scale"])
    images, tower = torch.randn(2, 3, 32, 32), decomposition.read_tower(model.visual)
    found = decompose(model.visual, images, sources="all", heads=lambda block, head: (block, head) == (1, 2))
    terms = decomposition.decompose_tokens(tower, images, layer=1, head=2)
    torch.testing.assert_close(found.sources[1], terms.attn, atol=2e-6, rtol=0)
    assert found.sources[0].abs().max() == 0


def test_source_tokens_sum_to_their_layer(family):
    _, model, function, images = family
    found = decompose(model, images, function, sources="all")
    blocks = {name.block for name in found.names if name.kind == "attn" and name.head is not None}
    assert set(found.sources) == blocks
    for block, tokens in found.sources.items():
        heads = [i for i, name in enumerate(found.names) if name.kind == "attn" and name.block == block]
        torch.testing.assert_close(tokens.sum(dim=1), found.terms[:, heads].sum(dim=1), atol=2e-6, rtol=0)


def random_vectors(names, terms):
    """Two vectors a component and image."""
    return torch.randn(2, *terms.shape, generator=torch.Generator().manual_seed(3))


def test_scores_of_source_tokens_are_the_products_of_their_terms(family):
    """With each head's vectors apart; the terms of a head's tokens by the walk for that head alone."""
    _, model, function, images = family
    found = decompose(model, images, function, vectors=random_vectors)
    vectors = random_vectors(found.names, found.terms)
    torch.testing.assert_close(found.products, torch.einsum("bcd,mbcd->mbc", found.terms, vectors), atol=1e-5, rtol=0)
    assert set(found.scores) == {name.block for name in found.names if name.kind == "attn"}
    assert not any(scores.requires_grad for scores in (found.terms, found.products, *found.scores.values()))
    for block, scores in found.scores.items():
        columns = [i for i, name in enumerate(found.names) if name.kind == "attn" and name.block == block]
        torch.testing.assert_close(scores.sum(dim=-1), found.products[:, :, columns], atol=1e-5, rtol=0)
        wanted = (block, len(columns) - 1)
        alone = decompose(model, images, function, sources="all", heads=lambda *head, wanted=wanted: head == wanted)
        alone = alone.sources[block]
        expected = torch.einsum("bnd,mbd->mbn", alone, vectors[:, :, columns[-1]])
        assert scores.shape == (2, len(images), len(columns), alone.shape[1]) and expected.std() > 1e-5
        torch.testing.assert_close(scores[:, :, -1], expected, atol=2e-6, rtol=1e-5)


def test_scores_with_vectors_that_depend_on_the_terms_and_beside_source_tokens():
    model, images = random_timm(*FAMILIES["vit"]), random_images(VIT["img_size"])
    whole = decompose(model, images, sources="all", vectors=lambda names, terms: terms.sum(dim=1)[None, :, None].expand(
        1, -1, len(names), -1))
    torch.testing.assert_close(whole.products.sum(dim=-1), torch.ones(1, 3), atol=1e-5, rtol=0)
    for block, tokens in whole.sources.items():
        expected = torch.einsum("bnd,bd->bn", tokens, whole.representation)
        torch.testing.assert_close(whole.scores[block].sum(dim=2)[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["vit", "vit_average", "vit_average_norm_first", "vit_registers"])
def test_scores_equal_their_literal_definition(name):
    """The last layer of a vision transformer: attention times values times the head's part of the output projection, through
    the frozen final norm, in double precision. Without constants, of which each token has the same part."""
    model, images = random_timm(*FAMILIES[name]), random_images(FAMILIES[name][1]["img_size"], 2)
    found = decompose(model, images, vectors=random_vectors)
    vectors = random_vectors(found.names, found.terms).double()
    model, images = model.double(), images.double()
    entered, left = [], []
    block, attn = model.blocks[-1], model.blocks[-1].attn
    hooks = [block.norm1.register_forward_hook(lambda _, args, out: entered.append(out)),
             block.register_forward_hook(lambda _, args, out: left.append(out))]
    output = model(images)
    for hook in hooks:
        hook.remove()
    (y,), (x,) = entered, left
    q, k, v = F.linear(y, attn.qkv.weight, attn.qkv.bias).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    scale = block.ls1.gamma if hasattr(block.ls1, "gamma") else 1
    prefix, norm = model.num_prefix_tokens, model.norm if model.global_pool == "token" else model.fc_norm
    pooled = x[:, 0] if model.global_pool == "token" else x[:, prefix:].mean(dim=1)
    if isinstance(norm, nn.Identity):
        norm, pooled = model.norm, None
    for head in range(attn.num_heads):
        width = v.shape[-1]
        out = attn.proj.weight[:, head * width:(head + 1) * width]
        written = torch.einsum("bqn,bnk,wk->bqnw", attention[:, head], v[:, head], out) * scale
        deviation = ((x if pooled is None else pooled).var(dim=-1, correction=0, keepdim=True) + norm.eps).sqrt()
        if pooled is None:  # the norm comes before the average
            read = (written / deviation[:, :, None])[:, prefix:].mean(dim=1)
        else:
            read = (written[:, 0] if model.global_pool == "token" else written[:, prefix:].mean(dim=1)) / deviation[:, None]
        read = read * norm.weight / output.norm(dim=-1)[:, None, None]
        column = [(name.kind, name.block, name.head) for name in found.names].index(("attn", 2, head))
        expected = torch.einsum("bnw,mbw->mbn", read, vectors[:, :, column])
        scores = found.scores[2][:, :, head].double()
        torch.testing.assert_close(scores - scores[..., :1], expected - expected[..., :1], atol=1e-6, rtol=0)
        assert (expected - expected[..., :1]).abs().max() > 1e-3


ONE_STAGE = {"depths": (2,), "num_heads": (2,)}


@pytest.mark.parametrize("name, changes", [
    *[FAMILIES[name] for name in ("vit", "vit_average", "vit_registers", "vit_two_at_once", "deit_distilled", "siglip")],
    ("swin_tiny_patch4_window7_224", SWIN | ONE_STAGE | {"img_size": (60, 76)}),
    ("swinv2_tiny_window8_256", SWIN | ONE_STAGE | {"img_size": 64, "window_size": 4}),
])
def test_source_tokens_summed_over_layers(name, changes):
    model, images = random_timm(name, changes), random_images(changes["img_size"], 2)
    for heads in (lambda block, head: True, lambda block, head: (block + head) % 2 == 0):
        every, found = (decompose(model, images, sources=sources, heads=heads) for sources in ("all", "summed"))
        assert list(found.sources) == [None] and len(every.sources) > 1
        torch.testing.assert_close(found.sources[None], sum(every.sources.values()), atol=1e-6, rtol=0)
        torch.testing.assert_close(found.terms, every.terms, atol=0, rtol=0)


def test_tokens_of_layers_that_differ_in_their_number_are_not_summed():
    with pytest.raises(UserError, match="49 or 196 tokens"):
        decompose(random_timm(*FAMILIES["swin"]), random_images(SWIN["img_size"]), sources="summed")


@pytest.mark.parametrize("name", ["swin", "swin_padded"])
def test_source_tokens_lie_where_the_stream_has_them(name, monkeypatch):
    """Through windows and shifts: the values of one token of the residual stream, and nothing else."""
    model, images = random_timm(*FAMILIES[name]), random_images(FAMILIES[name][1]["img_size"], 2)
    block = model.layers[0].blocks[1]
    block.attn.qkv.bias.zero_()
    found = decompose(model, images, sources="all").sources[1]
    literal = Literal(model, model, images, monkeypatch)
    literal.through = "layers.0.blocks.1.attn"
    tokens, effects = list(range(0, found.shape[1], 23)), []
    for token in tokens:
        def one(module, args, out, token=token):
            return torch.where(torch.arange(found.shape[1]).reshape(1, *out.shape[1:3], 1) == token, out.detach(), 0)

        effects.append(literal.effect("layers.0.blocks.1.norm1", one))
    effects = torch.stack(effects, dim=1)  # without the layer's constants, of which each token has the same part
    found = found[:, tokens].double()
    torch.testing.assert_close(found - found[:, :1], effects - effects[:, :1], atol=1e-6, rtol=0)
    assert (effects - effects[:, :1]).abs().max() > 1e-4


@pytest.mark.parametrize("name, changes, reason", [
    ("maxvit_tiny_tf_224", MAXVIT, "aten.tanh in head.pre_logits.act"),
    ("vit_tiny_patch16_224", VIT | {"global_pool": "max"}, "aten.amax"),
    ("vit_tiny_patch16_224", VIT | {"global_pool": "avgmax"}, "aten.amax"),
    ("vit_tiny_patch16_224", VIT | {"global_pool": ""}, "not one vector an image"),
    ("resnet18", {}, "aten.relu"),
])
def test_what_cannot_be_passed_is_refused_by_name(name, changes, reason):
    model = random_timm(name, changes)
    with pytest.raises(UserError, match=reason):
        decompose(model, images_for(changes if changes else {"img_size": 64}))


@pytest.mark.parametrize("name, options", [
    ("test_vit", {"pool": "map", "proj": "none"}),  # as open_clip's SigLIP
    ("test_vit3", {"pool": "map", "proj": "linear"}),
    ("test_vit", {"pool": "token", "proj": "linear", "proj_bias": True}),
    ("test_vit4", {"pool": "avg", "proj": "none"}),
    ("test_vit2", {"pool": "", "proj": "linear"}),
])
def test_a_timm_tower_of_open_clip(name, options):
    torch.manual_seed(0)
    visual, images = move(TimmModel(name, embed_dim=20, image_size=160, **options)), random_images(160, 2)
    found = decompose(visual, images)
    torch.testing.assert_close(found.terms.sum(dim=1), F.normalize(visual(images), dim=-1), atol=1e-6, rtol=0)
    assert len({name.block for name in found.names if name.kind == "attn"}) == len(visual.trunk.blocks)


def test_a_timm_tower_that_ends_in_an_mlp_is_refused():
    visual = TimmModel("test_vit", embed_dim=20, image_size=160, pool="token", proj="mlp").eval()
    with pytest.raises(UserError, match="aten.gelu in head.mlp.act"):
        decompose(visual, random_images(160, 1))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_scores_without_gradients(mode):
    model, images = random_timm(*FAMILIES["swin"]), random_images(SWIN["img_size"])
    expected = decompose(model, images, vectors=random_vectors)
    with mode():
        again = decompose(model.requires_grad_(True), images, vectors=random_vectors)
    for block, scores in expected.scores.items():
        torch.testing.assert_close(again.scores[block], scores, atol=0, rtol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["vit", "swin"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_same_without_gradients(name, mode):
    """Whether or not the model and the images were made in that mode, too."""
    timm_name, changes = FAMILIES[name]
    model, images = random_timm(timm_name, changes).requires_grad_(True), random_images(changes["img_size"])
    expected = decompose(model, images, sources="all")
    with mode():
        cases = [(model, images), (random_timm(timm_name, changes), random_images(changes["img_size"]))]
        found = [decompose(*case, sources="all") for case in cases]
        assert cases[1][1].is_inference() == torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    for other in found:
        torch.testing.assert_close(other.terms, expected.terms, atol=0, rtol=0)
        for block, tokens in other.sources.items():
            torch.testing.assert_close(tokens, expected.sources[block], atol=0, rtol=0)
        assert not other.terms.requires_grad and not other.terms.is_inference()
    assert not expected.terms.requires_grad and torch.is_grad_enabled()


def test_a_model_nobody_has_seen():
    """A residual network of its own kind: an unusual attention, a stream that is rescaled, two poolings."""
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Conv2d(3, 24, 8, 8), nn.Linear(48, 10)
            self.q, self.v, self.proj, self.mlp = (nn.Linear(24, 24) for _ in range(4))

        def forward(self, images):
            x = self.embed(images).flatten(2).mT
            q, v = (layer(x).unflatten(-1, (3, 8)).transpose(1, 2) for layer in (self.q, self.v))
            weights = (q @ q.mT).softmax(dim=-1)
            x = 0.5 * x.flip(1) - self.proj((weights @ v).transpose(1, 2).flatten(2))
            x = x + F.softplus(self.mlp(x)) / 3
            return self.out(torch.cat([x[:, 2], x.mean(dim=1)], dim=-1))

    torch.manual_seed(0)
    model, images = Model().eval(), torch.randn(2, 3, 32, 32)
    found = decompose(model, images, sources="all")
    torch.testing.assert_close(found.sources[0].sum(dim=1), found.terms[:, 1:4].sum(dim=1), atol=1e-6, rtol=0)
    heads = [("attn", head) for head in range(3)]
    assert [(name.kind, name.head) for name in found.names] == [("embed", None), *heads, ("mlp", None)]
    torch.testing.assert_close(found.terms.sum(dim=1), F.normalize(model(images), dim=-1), atol=1e-6, rtol=0)
