"""What planting attributes in heads stands on: which heads, what they write, and the share that an attribute explains
of it, so that gradients go through."""
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from utils.decompose import tower


def assign(attributes: Sequence[str], each: int, heads: Sequence[tuple[int, int]], seed: int) -> dict[int, str]:
    """Which of the heads, by their place among them, carries which attribute: `each` heads an attribute, by chance."""
    places = np.random.default_rng((seed, 0)).permutation(len(heads))[:each * len(attributes)]
    return dict(sorted((int(place), attributes[i % len(attributes)]) for i, place in enumerate(places)))


def sample(each: int, seed: int) -> list:
    """Scenes, `each` of every object, whose attributes do not depend on each other; scene i is of object i modulo the
    number of objects. (`scenes.sample_scenes` gives styles in turn, so that an object has two of them.)"""
    from utils.data.scenes import concepts, sample_scene

    number = len(concepts())
    return [sample_scene(np.random.default_rng((seed, i)), object=i % number) for i in range(each * number)]


def codes(scenes: list) -> dict[str, Tensor]:
    """The index [b] of each scene's value of every attribute."""
    from utils.analysis.names import judges

    return {name: torch.from_numpy(own) for name, own in judges.codes(scenes, list(judges.VALUES)).items()}


def class_means(texts: Tensor, groups: dict[str, Tensor]) -> dict[str, Tensor]:
    """For each attribute the mean [m, d] of the texts [n, d] of each of its values, minus that of all, of unit
    length."""
    found = {}
    for name, group in groups.items():
        sums = texts.new_zeros(int(group.max()) + 1, texts.shape[1]).index_add(0, group, texts)
        found[name] = normalize(sums / torch.bincount(group)[:, None] - texts.mean(0), dim=-1)
    return found


def shares(terms: Tensor, group: Tensor) -> Tensor:
    """The share [c] of the variance of terms [b, c, d] between the groups [b]: epsilon squared, as of
    utils/analysis/truth.py."""
    group = group.unique(return_inverse=True)[1]
    number = torch.bincount(group)
    terms = terms - terms.mean(dim=0)
    sums = terms.new_zeros(len(number), *terms.shape[1:]).index_add(0, group, terms)
    between = (sums.square() / number[:, None, None]).sum(dim=(0, 2))
    share = between / terms.square().sum(dim=(0, 2)).clamp_min(1e-12)
    return 1 - (1 - share) * (len(terms) - 1) / max(len(terms) - len(number), 1)


def first_layers(visual: nn.Module, images: Tensor, number: int) -> Tensor:
    """The tokens [b, n, w] of images that the block after the first `number` is given."""
    tokens = visual._embeds(images)
    for block in visual.transformer.resblocks[:number]:
        tokens = block(tokens)
    return tokens


def last_layers(visual: nn.Module, tokens: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """From the tokens [b, n, w] that block `first` of an image tower of open_clip is given: representations [b, d], of
    unit length, and what each head from there on adds to them [b, c, d], as the Decomposer has it."""
    blocks, norm, projection = visual.transformer.resblocks, visual.ln_post, visual.proj
    weighted, written = norm.weight[:, None] * projection, []
    for index, block in enumerate(blocks[first:], first):
        last, attn = index == len(blocks) - 1, block.attn
        trained = replace(tower.read_block(block), qkv_weight=attn.in_proj_weight, qkv_bias=attn.in_proj_bias,
                          out_weight=attn.out_proj.weight, out_bias=attn.out_proj.bias)  # read_block's have no gradient
        added, out, _ = tower.attend(trained, tokens, only_class_token=last)
        tokens = (tokens[:, :1] if last else tokens) + added
        tokens = tokens + block.mlp(block.ln_2(tokens))
        maps = (attn.out_proj.weight.T @ weighted).unflatten(0, (attn.num_heads, -1))
        written.append(torch.einsum("bhk,hkd->bhd", out, maps) + attn.out_proj.bias @ weighted / attn.num_heads)
    final, parts = tokens[:, 0], (2 * len(blocks) + 1) * blocks[-1].attn.num_heads
    variance, mean = torch.var_mean(final, dim=-1, correction=0)
    terms = torch.cat(written, dim=1) - mean[:, None, None] * weighted.sum(0) / parts
    terms = terms / (variance + norm.eps).sqrt()[:, None, None] + norm.bias @ projection / parts
    representation = norm(final) @ projection
    length = representation.norm(dim=-1, keepdim=True)
    return representation / length, terms / length[:, None]
