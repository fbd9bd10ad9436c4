"""The exact decomposition of text representations: the sums of utils/decompose/tower.py for text towers.

A text's representation is one token after the last block (the end of the text, CoCa's class token, SigLIP's last
token), through the final LayerNorm and the projection: a sum over the start embedding of that token, heads, and MLPs;
and each head's term is a sum over the tokens that it reads. Tokens after the one that is read have no part in a causal
tower. Known are the towers of open_clip's own (CLIP, CoCa, SigLIP) and of transformers (CLIP, SigLIP).
"""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.cli import UserError
from utils.decompose import tower
from utils.decompose.terms import Terms
from utils.decompose.tower import Block, Tower
from utils.models.model import Model
from utils.runs.components import Component

START, END, PADDING = "<start>", "<end>", "<padding>"  # what stands for tokens that are no words


@dataclass
class Tokens:
    """Texts as they enter the first block."""
    x: Tensor            # [m, n, w]
    mask: Tensor | None  # what is added to attention: [n, n] or [m, h, n, n]
    place: Tensor        # [m]: the token that is read


@dataclass
class Inside:
    """What the read token of each text reads."""
    by_source: list[Tensor]      # of each layer [m, h, n, k]: outputs of heads by their source tokens
    weights: list[Tensor]        # of each layer [m, h, n]: its attention
    seen: Tensor | None = None   # [m, n]: the tokens that it may read


@dataclass
class Words:
    """What the tokens of one text contribute to its representation through all heads."""
    names: list[str]    # words, and <start>, <end>, <padding>; tokens of one word are one
    values: Tensor      # [words, d]: sum to the terms of all heads
    attention: Tensor   # [l, h, words]: how much of the read token's attention each gets
    by_head: Tensor     # [words, heads, d]: `values` by the head that they go through


class TextDecomposer:
    """Takes text representations of a model apart. Raises UserError for a model without a text side, and for a text
    tower of another kind."""

    def __init__(self, model: Model):
        self.model = model
        self._tower, self._pieces, self.bias = read_tower(model)

    @property
    def components(self) -> list[Component]:
        """The text tower's components in the order of `Terms`: heads, the start embedding, MLPs."""
        return self._tower.components

    @torch.no_grad()
    def terms(self, texts: list[str]) -> Terms:
        """What each component contributes to the unit representations of texts. The bias of a projection that has one
        (SigLIP) is in the embedding's term; over a text's length, it is `constant`."""
        return decompose(self._tower, self.model.tokenizer(texts).to(self.model.device), self.bias)

    def arrays(self, texts: list[str]) -> dict[str, np.ndarray]:
        """The terms of texts by the arrays that keep them: attn [m, l, h, d], mlp [m, l + 1, d], the embedding first,
        and of a projection that has a bias, bias [m, d], the part of the embedding's term that it is."""
        terms = self.terms(texts)
        arrays = {what: terms.arrays()[what] for what in ("attn", "mlp")}
        arrays |= {} if self.bias is None else {"bias": self.constant(terms)}
        return {what: values.cpu().numpy() for what, values in arrays.items()}

    def constant(self, terms: Terms) -> Tensor | None:
        """The part [m, d] of the terms that is the projection's bias; None where it has none."""
        return None if self.bias is None else self.bias * terms.scalars[:, 2:]

    @torch.no_grad()
    def names(self, text: str) -> list[str]:
        """The names of a text's words, as `words` gives them, without a pass through the tower."""
        ids = self.model.tokenizer([text]).to(self.model.device)
        tokens = self._tower.embed(ids)
        _, seen = readable(tokens)
        pieces = self._pieces(ids, tokens.x.shape[1])[0]
        return group([pieces[place] for place in seen[0].nonzero()[:, 0].tolist()])[0]

    @torch.no_grad()
    def words(self, texts: list[str]) -> tuple[Terms, list[Words]]:
        """The terms of texts, and of each text what its words contribute through all heads.

        What a head adds whatever it reads (its output projection's bias, its share of the final norm's mean and bias)
        is divided evenly over the tokens that may be read, as for patches (section 3.2 and appendix A.1).
        """
        ids, inside = self.model.tokenizer(texts).to(self.model.device), Inside([], [])
        terms = decompose(self._tower, ids, self.bias, inside)
        weights, seen = torch.stack(inside.weights, 1), inside.seen
        found = []
        for i, pieces in enumerate(self._pieces(ids, seen.shape[1])):
            places = seen[i].nonzero()[:, 0]
            names, groups = group([pieces[place] for place in places.tolist()])
            parts = [places[one] for one in groups]
            read = torch.stack([torch.stack([some[i, :, part].sum(dim=1) for some in inside.by_source])
                                for part in parts])                                         # [words, l, h, k]
            values = torch.einsum("clhk,lhkd->clhd", read, self._tower.head_maps).flatten(1, 2) * terms.scalars[i, 0]
            share = torch.tensor([len(part) / len(places) for part in parts], device=values.device)
            values = values + share[:, None, None] * (terms.of("attn")[i] - values.sum(dim=0))
            attention = torch.stack([weights[i, ..., part].sum(dim=-1) for part in parts], dim=-1)
            found.append(Words(names, values.sum(dim=1), attention, values))
        return terms, found

    def check(self, texts: list[str]) -> float:
        """The largest difference between the sum of the texts' terms and the model's own unit representations."""
        return (self.terms(texts).values.sum(dim=1) - self.model.embed_texts(texts)).abs().max().item()


def group(pieces: list[str]) -> tuple[list[str], list[list[int]]]:
    """Names of the words of a text's token pieces (`cat</w>`, or `\u2581cat`), and the places of the tokens of each.
    All padding is one."""
    names: list[str] = []
    groups: list[list[int]] = []
    whole = True  # whether the word before is complete
    for place, piece in enumerate(pieces):
        special = piece in (START, END, PADDING)
        if piece == PADDING and PADDING in names:
            groups[names.index(PADDING)].append(place)
            continue
        if special or whole or piece.startswith("\u2581"):
            names.append("")
            groups.append([])
        names[-1] += piece.removesuffix("</w>").removeprefix("\u2581")
        groups[-1].append(place)
        whole = special or piece.endswith("</w>")
    return names, groups


@torch.no_grad()
def decompose(text_tower: Tower, ids, bias: Tensor | None = None, inside: Inside | None = None) -> Terms:
    """The terms of texts, at the cost of a forward pass; the last block runs for the read token alone. Where `inside`
    is given, it is filled."""
    tokens = text_tower.embed(ids)
    x, place, rows = tokens.x, tokens.place, torch.arange(len(tokens.x), device=tokens.x.device)
    mlp, heads, own = [x[rows, place]], [], []
    read_mask, seen = readable(tokens)
    for index, block in enumerate(text_tower.blocks):
        last = index == len(text_tower.blocks) - 1
        q, k, v = _heads(block, x)
        scores = (q[rows, :, place][:, :, None] @ k.transpose(-1, -2)).squeeze(2) * q.shape[-1] ** -0.5
        attention = (scores if read_mask is None else scores + read_mask).softmax(dim=-1)    # [m, h, n]
        out = (attention[:, :, None] @ v).squeeze(2)                                          # [m, h, k]
        heads.append(out)
        own.append(attention[rows, :, place][..., None] * v[rows, :, place])
        if inside is not None:
            inside.by_source.append(attention[..., None] * v)
            inside.weights.append(attention)
            inside.seen = seen
        if last:
            x = x[rows, place] + F.linear(out.flatten(1), block.out_weight, block.out_bias)
        else:
            every = F.scaled_dot_product_attention(q, k, v, attn_mask=tokens.mask)
            x = x + F.linear(every.transpose(1, 2).flatten(2), block.out_weight, block.out_bias)
        added = block.mlp(block.norm_2(x))
        x = x + added
        mlp.append(added if last else added[rows, place])
    return tower.project(text_tower, x, torch.stack(mlp, 1), torch.stack(heads, 1), torch.stack(own, 1),
                         seen.sum(dim=1)[:, None, None], bias)


def readable(tokens: Tokens) -> tuple[Tensor | None, Tensor]:
    """What is added to the attention of each text's read token, [m, 1 or h, n], and which tokens it may read [m, n]."""
    x, rows = tokens.x, torch.arange(len(tokens.x), device=tokens.x.device)
    if tokens.mask is None:
        return None, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    whole = tokens.mask.expand(len(x), 1, -1, -1) if tokens.mask.ndim == 2 else tokens.mask
    mask = whole[rows, :, tokens.place]
    return mask, mask.isfinite().any(dim=1)


def _heads(block: Block, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [m, h, n, k]."""
    out = F.linear(block.norm_1(x), block.qkv_weight, block.qkv_bias)
    q, k, v = out.unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return block.norm_q(q), block.norm_k(k), v


def read_tower(model: Model) -> tuple[Tower, Callable, Tensor | None]:
    """Read a model's text tower: the tower, a function from token ids and a number of tokens to the pieces of each
    text, and the projection's bias (None where it has none). Raises UserError for one of another kind."""
    if model.encode_text is None:
        raise UserError(f"--model {model.name} has no text side; this step needs a CLIP")
    network = model.network
    if type(network).__module__.startswith("open_clip."):
        return _read_open_clip(model, getattr(network, "text", network))
    kind = getattr(getattr(network, "config", None), "model_type", "unknown")
    if kind in ("clip", "siglip"):
        return _read_transformers(model, kind)
    raise _refuse(f"it is of {type(network).__name__}")


def _refuse(reason: str) -> UserError:
    return UserError(f"this model's texts cannot be decomposed: {reason}; known are the text towers of open_clip's "
                     "CLIP, CoCa and SigLIP, and of transformers' CLIP and SigLIP")


def _tower(embed: Callable, blocks: list[Block], norm: nn.Module, projection: Tensor) -> Tower:
    if not isinstance(norm, nn.LayerNorm) or norm.weight is None:
        raise _refuse("its final norm is not a LayerNorm with weights")
    weighted = norm.weight.detach()[:, None] * projection
    head_maps = torch.stack([(block.out_weight.T @ weighted).unflatten(0, (block.heads, -1)) for block in blocks])
    components = [Component("attn", layer, head) for layer, block in enumerate(blocks) for head in range(block.heads)]
    components += [Component("embed"), *(Component("mlp", layer) for layer in range(len(blocks)))]
    return Tower(embed=embed, blocks=blocks, norm=norm, projection=projection, head_maps=head_maps, patch_size=(0, 0),
                 components=components)


def _read_open_clip(model: Model, text: nn.Module) -> tuple[Tower, Callable, Tensor | None]:
    """The text tower of open_clip's CLIP, which holds it itself, or of CoCa and SigLIP."""
    inner = text is not model.network
    if inner and type(text).__name__ != "TextTransformer":
        raise _refuse(f"its text tower is a {type(text).__name__}")
    pooling, end = (text.pool_type, text.eos_id) if inner else (text.text_pool_type, text.text_eos_id)
    class_token = getattr(text, "cls_emb", None)
    pooling = "last" if class_token is not None else pooling
    if pooling not in ("first", "last", "argmax", "eos"):
        raise _refuse(f"it pools its tokens by {pooling!r}")
    for block in text.transformer.resblocks:
        if reason := tower.refusal_of_block(block):
            raise _refuse(reason)

    def embed(ids: Tensor) -> Tokens:
        if inner:
            x, mask = text._embeds(ids)
            mask = mask.unflatten(0, (len(x), -1)) if mask is not None and mask.ndim == 3 else mask
        else:
            x, mask = text.token_embedding(ids) + text.positional_embedding, text.attn_mask
        place = {"first": torch.zeros_like, "last": lambda ids: torch.full_like(ids, x.shape[1] - 1),
                 "argmax": lambda ids: ids, "eos": lambda ids: ids}[pooling](ids[:, 0])
        if pooling in ("argmax", "eos"):
            place = (ids if pooling == "argmax" else (ids == end).int()).argmax(dim=-1)
        return _cut(Tokens(x, mask, place), causal=mask is not None and mask.ndim == 2)

    projection = text.text_projection
    linear = isinstance(projection, nn.Linear)
    matrix = torch.eye(text.ln_final.weight.shape[0], device=model.device) if projection is None else \
        projection.weight.detach().T if linear else projection.detach()
    pieces = _open_clip_pieces(model, class_token is not None)
    return (_tower(embed, [tower.read_block(block) for block in text.transformer.resblocks], text.ln_final, matrix),
            pieces, projection.bias.detach() if linear and projection.bias is not None else None)


def _cut(tokens: Tokens, causal: bool) -> Tokens:
    """Without the tokens behind the last one that is read, which a causal tower's read tokens never see."""
    if not causal:
        return tokens
    n = int(tokens.place.max()) + 1
    return Tokens(tokens.x[:, :n], tokens.mask[:n, :n], tokens.place)


def _open_clip_pieces(model: Model, class_token: bool) -> Callable:
    """Pieces of each text's tokens, from ids [m, n] and the number of tokens in the tower."""
    def named(tokenizer, ids: list[int]) -> list[str]:
        if hasattr(tokenizer, "tokenizer"):  # that of transformers, inside
            return _named(tokenizer.tokenizer.convert_ids_to_tokens(ids))
        special = {tokenizer.sot_token_id: START, tokenizer.eot_token_id: END}
        found = [special.get(one) or tokenizer.decode([one]).rstrip(" ") + "</w>" * tokenizer.decoder[one].endswith(
            "</w>") for one in ids]
        end = found.index(END) + 1 if END in found else len(found)
        return found[:end] + [PADDING] * (len(found) - end)

    def pieces(ids: Tensor, number: int) -> list[list[str]]:
        tokenizer = model.own_tokenizer() if model.own_tokenizer else model.tokenizer
        return [(named(tokenizer, row.tolist()) + ["<class>"] * class_token)[:number] for row in ids]

    return pieces


def _read_transformers(model: Model, kind: str) -> tuple[Tower, Callable, Tensor | None]:
    """The text tower of transformers' CLIP or SigLIP."""
    text = model.network.text_model
    causal = kind == "clip"

    def embed(encoded) -> Tokens:
        ids = encoded["input_ids"]
        x = text.embeddings(input_ids=ids)
        if not causal:
            return Tokens(x, None, torch.full_like(ids[:, 0], x.shape[1] - 1))
        end = getattr(text, "eos_token_id", 2)
        place = ids.argmax(dim=-1) if end == 2 else (ids == end).int().argmax(dim=-1)
        mask = torch.full((x.shape[1],) * 2, -torch.inf, device=x.device).triu(1)
        return _cut(Tokens(x, mask, place), causal=True)

    def pieces(encoded, number: int) -> list[list[str]]:
        return [_named(encoded.tokens(i))[:number] for i in range(len(encoded["input_ids"]))]

    blocks = [_read_layer(layer) for layer in text.encoder.layers]
    if causal:
        projection, bias = model.network.text_projection.weight.detach().T, None
    else:
        projection, bias = text.head.weight.detach().T, text.head.bias.detach()
    return _tower(embed, blocks, text.final_layer_norm, projection), pieces, bias


def _named(tokens: list[str]) -> list[str]:
    """Pieces with one name for the tokens that begin and end a text and pad it, by the forms that those have."""
    ends = ("<|endoftext|>", "</s>", "<eos>")
    found, ended = [], False
    for token in tokens:
        if not found and token in ("<|startoftext|>", "<s>", "<bos>"):
            found.append(START)
        elif token in ends and not ended:
            found.append(END)
            ended = True
        else:
            found.append(PADDING if ended or token in ("<pad>", *ends) else token)
    return found


def _read_layer(layer: nn.Module) -> Block:
    """A block of transformers' CLIP and SigLIP."""
    attn = layer.self_attn
    parts = (attn.q_proj, attn.k_proj, attn.v_proj)
    return Block(heads=attn.num_heads, norm_1=layer.layer_norm1,
                 qkv_weight=torch.cat([part.weight.detach() for part in parts]),
                 qkv_bias=torch.cat([part.bias.detach() for part in parts]),
                 norm_q=nn.Identity(), norm_k=nn.Identity(), out_weight=attn.out_proj.weight.detach(),
                 out_bias=attn.out_proj.bias.detach(), norm_2=layer.layer_norm2, mlp=layer.mlp)
