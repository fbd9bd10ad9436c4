import pytest
import torch
import torch.nn.functional as F
from builders import (
    FAMILIES,
    MAXVIT,
    SWIN,
    TEXT,
    VISION,
    VIT,
    model_of,
    move,
    random_images,
    random_timm,
    representation_of,
    walked,
)
from open_clip.timm_model import TimmModel
from torch import nn
from torch.autograd import forward_ad

from utils.cli import UserError
from utils.decompose import tower
from utils.decompose.decomposer import Decomposer
from utils.decompose.walk import decompose, decompose_tokens
from utils.runs.components import Component


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
    assert found.values.dtype == torch.float32
    assert found.values.shape == (3, len(found.components), own.shape[1])
    torch.testing.assert_close(found.representation, own, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.values.sum(dim=1), own, atol=2e-6, rtol=0)
    assert found.components.count(Component("embed")) == 1
    assert len(set(found.components)) == len(found.components)
    kinds = [component.kind for component in found.components]
    assert kinds == sorted(kinds, key=("attn", "embed", "mlp", "conv").index)


class Literal:
    """The definition, in double precision: what a component wrote, through the rest of the model with statistics and
    attention weights detached and every later component held fixed, by forward differentiation."""

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


def written_by_head(head: int, constants: bool = True):
    """What one head writes: its slice of the output projection, and with `constants` an even part of the bias."""
    def direction(module, args, out):
        x, number = module.heads_output, module.num_heads
        dim = 1 if x.ndim == 4 and isinstance(module.proj, nn.Conv2d) else -1
        width = x.shape[dim] // number
        alone = torch.zeros_like(x)
        alone.narrow(dim, head * width, width).copy_(x.narrow(dim, head * width, width))
        whole, none = module.proj(alone), module.proj(torch.zeros_like(x))
        return (whole - none + none / number * constants).view_as(out)
    return direction


SWIN_NORMS = ["layers.1.downsample.norm", "layers.2.downsample.norm", "norm"]
CONSTANTS = {  # the modules on the residual path that add one
    **{name: ["norm"] for name in ("vit", "vit_average_norm_first", "vit_oblong", "vit_qk_norm", "deit", "deit3",
                                   "deit_distilled", "dino", "dinov2", "dinov2_registers", "dinov2_swiglu", "clip",
                                   "maxvit")},
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
    expected = {kind: [] for kind in ("attn", "mlp", "conv")}
    for (kind, writer), constant in zip(layers, constants):
        if kind == "attn":
            number = model.get_submodule(writer).num_heads
            expected[kind] += [literal.effect(writer, written_by_head(head)) + constant / number
                               for head in range(number)]
        elif kind != "embed":
            expected[kind].append(literal.effect(writer, written) + constant)
    for kind, some in expected.items():
        terms = found.of(kind)
        assert terms.shape[1] == len(some)
        for place, term in enumerate(some):
            torch.testing.assert_close(terms[:, place].double(), term, atol=1e-5, rtol=0)
    blocks = {"vit": "blocks.0", "siglip": "blocks.0", "swin": "layers.0", "swinv2": "layers.0"}.get(name)
    if blocks:  # the embedding is what enters the first block
        first = model.get_submodule(blocks)
        hook = first.register_forward_pre_hook(lambda module, args: (forward_ad.make_dual(args[0], args[0].clone()),))
        literal.direction = ("", None)
        with forward_ad.dual_level(), torch.no_grad():
            embed = forward_ad.unpack_dual(literal.function(literal.images)).tangent / literal.length + constants[0]
        hook.remove()
        torch.testing.assert_close(found.of("embed")[:, 0].double(), embed, atol=1e-5, rtol=0)


def random_vectors(terms, number=2):
    """Vectors [m, b, c, d] for terms."""
    return torch.randn(number, *terms.values.shape, generator=torch.Generator().manual_seed(3))


def test_an_open_clip_tower_gives_the_terms_of_the_fast_path(variant):
    _, model = variant
    images = torch.randn(3, 3, *model.visual.image_size)
    fast, fast_score = tower.decompose_tokens(tower.read_tower(model.visual), images)
    found, score = decompose_tokens(model.visual, images)
    assert found.components == fast.components
    torch.testing.assert_close(found.values, fast.values, atol=2e-6, rtol=0)
    cls_attn = decompose(model.visual, images, class_token=True).cls_attn
    torch.testing.assert_close(cls_attn, fast.cls_attn, atol=2e-6, rtol=0)
    vectors = random_vectors(fast)
    others = fast_score(vectors)
    for layer, scores in score(vectors).items():
        torch.testing.assert_close(scores, others.pop(layer), atol=1e-5, rtol=1e-5)
    assert not others


def test_tokens_along_directions_are_those_of_the_fast_path(variant):
    _, model = variant
    images = torch.randn(3, 3, *model.visual.image_size)
    directions = torch.randn(2, 1, 20)
    fast, found = (Decomposer(each).tokens(images, directions)
                   for each in (model_of(model.visual), walked(model.visual)))
    torch.testing.assert_close(found.parts, fast.parts, atol=1e-5, rtol=0)
    assert found.grids == fast.grids
    for layer, scores in fast.scores.items():
        torch.testing.assert_close(found.scores[layer], scores, atol=5e-6, rtol=0)
    torch.testing.assert_close(found.patches(), fast.patches(), atol=1e-5, rtol=0)


def test_source_tokens_sum_to_their_heads(family):
    _, model, function, images = family
    decomposer = Decomposer(model_of(model, images.shape[-2:], function, getattr(model, "num_prefix_tokens", 0)))
    width, generator = function(images).shape[1], torch.Generator().manual_seed(3)
    found = decomposer.tokens(images, torch.randn(2, 1, width, generator=generator))
    heads = [component for component in found.components if component.kind == "attn"]
    assert set(found.scores) == {head.layer for head in heads}
    assert not any(some.requires_grad for some in (found.parts, *found.scores.values()))
    for layer, scores in found.scores.items():
        columns = [found.components.index(head) for head in heads if head.layer == layer]
        torch.testing.assert_close(scores.sum(dim=-1), found.parts[:, :, columns], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in CONSTANTS if name != "maxvit_tf"])
def test_what_tokens_add_sums_to_what_their_head_wrote(name, monkeypatch):
    """Before constants: every head of each family, with vectors of its own, by forward differentiation."""
    timm_name, changes = FAMILIES[name]
    model, images = random_timm(timm_name, changes), random_images(changes["img_size"], 2)
    terms, score = decompose_tokens(model, images)
    vectors = random_vectors(terms)
    scores = score(vectors)
    literal = Literal(model, model, images, monkeypatch)
    writers = [writer for kind, writer in literal.writers if kind == "attn"]
    for layer, writer in zip(sorted(scores), writers, strict=True):
        for head in range(model.get_submodule(writer).num_heads):
            effect = literal.effect(writer, written_by_head(head, constants=False))
            column = terms.components.index(Component("attn", layer, head))
            expected = torch.einsum("bd,mbd->mb", effect, vectors[:, :, column].double())
            torch.testing.assert_close(scores[layer][:, :, head].sum(dim=-1).double(), expected, atol=1e-5, rtol=1e-5)


def test_directions_that_depend_on_the_representations():
    model, images = random_timm(*FAMILIES["vit"]), random_images(VIT["img_size"])
    decomposer = Decomposer(model_of(model, (32, 32), prefix_tokens=1))
    found = decomposer.tokens(images, lambda representation: representation[None])
    torch.testing.assert_close(found.parts.sum(dim=-1), torch.ones(1, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.representation, F.normalize(model(images), dim=-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["vit", "vit_average", "vit_average_norm_first", "vit_registers"])
def test_scores_equal_their_literal_definition(name):
    """The last layer of a vision transformer: attention times values times the head's part of the output projection,
    through the frozen final norm, in double precision. Without constants, of which each token has the same part."""
    model, images = random_timm(*FAMILIES[name]), random_images(FAMILIES[name][1]["img_size"], 2)
    found, score = decompose_tokens(model, images)
    scores, vectors = score(random_vectors(found)), random_vectors(found).double()
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
            read = written[:, 0] if model.global_pool == "token" else written[:, prefix:].mean(dim=1)
            read = read / deviation[:, None]
        read = read * norm.weight / output.norm(dim=-1)[:, None, None]
        column = found.components.index(Component("attn", 2, head))
        expected = torch.einsum("bnw,mbw->mbn", read, vectors[:, :, column])
        own = scores[2][:, :, head].double()
        torch.testing.assert_close(own - own[..., :1], expected - expected[..., :1], atol=1e-6, rtol=0)
        assert (expected - expected[..., :1]).abs().max() > 1e-3


@pytest.mark.parametrize("name, attn, norm, layer", [
    ("vit", "blocks.1.attn", "blocks.1.norm1", 1), ("vit_registers", "blocks.0.attn", "blocks.0.norm1", 0),
    ("siglip", "blocks.1.attn", "blocks.1.norm1", 1), ("deit_distilled", "blocks.0.attn", "blocks.0.norm1", 0),
    ("swin", "layers.0.blocks.1.attn", "layers.0.blocks.1.norm1", 1),
    ("swin_padded", "layers.0.blocks.1.attn", "layers.0.blocks.1.norm1", 1)])
def test_source_tokens_lie_where_the_stream_has_them(name, attn, norm, layer, monkeypatch):
    """Also through windows and shifts: the values of one token of the residual stream, and nothing else."""
    model, images = random_timm(*FAMILIES[name]), random_images(FAMILIES[name][1]["img_size"], 2)
    model.get_submodule(attn).qkv.bias.zero_()
    terms, score = decompose_tokens(model, images)
    vectors = random_vectors(terms)[:, :, :1].expand(-1, -1, terms.values.shape[1], -1)
    scores = score(vectors)[layer].sum(dim=2).double()
    literal = Literal(model, model, images, monkeypatch)
    literal.through = attn
    tokens, effects = list(range(0, scores.shape[2], 23 if "swin" in name else 3)), []
    for token in tokens:
        def one(module, args, out, token=token):
            chosen = torch.arange(scores.shape[2]) == token
            return torch.where(chosen.reshape(1, *out.shape[1:-1], 1), out.detach(), 0)

        effects.append(torch.einsum("bd,mbd->mb", literal.effect(norm, one), vectors[:, :, 0].double()))
    effects, scores = torch.stack(effects, dim=-1), scores[..., tokens]
    torch.testing.assert_close(scores - scores[..., :1], effects - effects[..., :1], atol=1e-5, rtol=1e-5)
    assert (effects - effects[..., :1]).abs().max() > 1e-3


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
        decompose(model, random_images(changes.get("img_size", 64)))


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
    torch.testing.assert_close(found.values.sum(dim=1), F.normalize(visual(images), dim=-1), atol=1e-6, rtol=0)
    layers = {component.layer for component in found.components if component.kind == "attn"}
    assert len(layers) == len(visual.trunk.blocks)


def test_a_timm_tower_that_ends_in_an_mlp_is_refused():
    visual = TimmModel("test_vit", embed_dim=20, image_size=160, pool="token", proj="mlp").eval()
    with pytest.raises(UserError, match="aten.gelu in head.mlp.act"):
        decompose(visual, random_images(160, 1))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_scores_without_gradients(mode):
    model, images = random_timm(*FAMILIES["swin"]), random_images(SWIN["img_size"])
    decomposer, directions = Decomposer(model_of(model, (56, 56))), torch.randn(2, 1, 96)
    expected = decomposer.tokens(images, directions)
    model.requires_grad_(True)
    with mode():
        again = decomposer.tokens(images, directions)
    for layer, scores in expected.scores.items():
        torch.testing.assert_close(again.scores[layer], scores, atol=0, rtol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["vit", "swin"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_same_without_gradients(name, mode):
    """Whether or not the model and the images were made in that mode, too."""
    timm_name, changes = FAMILIES[name]
    model, images = random_timm(timm_name, changes).requires_grad_(True), random_images(changes["img_size"])
    expected = decompose(model, images, class_token=name == "vit")
    with mode():
        cases = [(model, images), (random_timm(timm_name, changes), random_images(changes["img_size"]))]
        found = [decompose(*case, class_token=name == "vit") for case in cases]
        assert cases[1][1].is_inference() == torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    for other in found:
        torch.testing.assert_close(other.values, expected.values, atol=0, rtol=0)
        torch.testing.assert_close(other.cls_attn, expected.cls_attn, atol=0, rtol=0)
        assert not other.values.requires_grad
        assert not other.values.is_inference()
    assert not expected.values.requires_grad
    assert torch.is_grad_enabled()


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
    found, score = decompose_tokens(model, images)
    assert [str(component) for component in found.components] == ["0.0", "0.1", "0.2", "embedding", "mlp 0"]
    torch.testing.assert_close(found.values.sum(dim=1), F.normalize(model(images), dim=-1), atol=1e-6, rtol=0)
    vectors = random_vectors(found)[:, :1].expand(-1, 2, -1, -1)
    products = torch.einsum("bcd,mbcd->mbc", found.values, vectors)
    missing = products[:, :, :3] - score(vectors)[0].sum(dim=-1)  # biases: the same for both images but for the length
    missing = missing * model(images).norm(dim=-1)[:, None]
    torch.testing.assert_close(missing[:, 0], missing[:, 1], atol=1e-5, rtol=1e-5)
    assert missing.abs().max() > 1e-2


@pytest.mark.parametrize("name", ["convnext_tiny", "convnextv2_tiny"])
def test_convolution_blocks_without_attention(name, monkeypatch):
    """ConvNeXt; in its second version a norm over places stands inside each block."""
    model, images = random_timm(name, {"depths": (1, 1, 1, 2), "dims": (8, 16, 24, 32)}), random_images(64, 2)
    if name == "convnext_tiny":
        for stage in model.stages:
            for block in stage.blocks:
                block.gamma = None  # so that an MLP's output is what its block adds
    found = decompose(model, images)
    torch.testing.assert_close(found.values.sum(dim=1), F.normalize(model(images), dim=-1), atol=1e-6, rtol=0)
    assert list(map(str, found.components)) == ["embedding", *(f"conv {block}" for block in range(5))]
    literal = Literal(model, model, images, monkeypatch)
    one, other = (literal.effect(f"stages.3.blocks.{block}.mlp", written) for block in range(2))
    difference = (found.values[:, -2] - found.values[:, -1]).double()  # the constants that both pass are the same
    torch.testing.assert_close(difference, one - other, atol=1e-5, rtol=1e-5)
    assert difference.abs().max() > 1e-2


def test_attention_pooling_of_coca():
    import open_clip

    from utils.models.open_clip import as_model

    torch.manual_seed(0)
    vision = VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    network = move(open_clip.CoCa(20, TEXT | {"layers": 1, "heads": 2},
                                  TEXT | {"embed_cls": True, "output_tokens": True}, vision))
    model, images = as_model(network, "coca", "", torch.device("cpu")), random_images(32, 2)
    own = network.encode_image(images, normalize=False)
    assert not torch.allclose(own.norm(dim=-1), torch.ones(2))
    found = Decomposer(model).terms(images)
    torch.testing.assert_close(found.values.sum(dim=1), F.normalize(own, dim=-1), atol=1e-6, rtol=0)
    assert [part.head for part in found.components if part.kind == "attn"] == list(range(4)) * 3
    assert found.cls_attn is None
