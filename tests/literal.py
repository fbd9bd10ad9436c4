"""Literal, slow implementations of the definitions, in double precision: what the fast ones must equal."""
import numpy as np
import torch


def decompose(visual, images):
    """Every term of every image, as section 3 of the paper and the published conventions define it.

    Returns a dict: attn [b, l, n, h, d] (one term for each source token of each head), mlp [b, l + 1, d],
    representation [b, d].
    """
    visual = visual.double()
    images = images.double()
    with torch.no_grad():
        x = visual.conv1(images)
        b, width = x.shape[:2]
        x = x.reshape(b, width, -1).permute(0, 2, 1)
        x = torch.cat([visual.class_embedding.reshape(1, 1, -1).repeat(b, 1, 1), x], 1) + visual.positional_embedding
        x = visual.ln_pre(x)
        n = x.shape[1]
        blocks = list(visual.transformer.resblocks)
        l, h = len(blocks), blocks[0].attn.num_heads
        k = width // h
        mlp, attn = [x[:, 0]], torch.zeros(b, l, n, h, width, dtype=torch.float64)
        for layer, block in enumerate(blocks):
            y = block.ln_1(x)
            w_q, w_k, w_v = block.attn.in_proj_weight.chunk(3)
            b_q, b_k, b_v = block.attn.in_proj_bias.chunk(3)
            w_out, b_out = block.attn.out_proj.weight, block.attn.out_proj.bias
            gamma_1 = getattr(block.ls_1, "gamma", torch.ones(width, dtype=torch.float64))
            gamma_2 = getattr(block.ls_2, "gamma", torch.ones(width, dtype=torch.float64))
            whole = torch.zeros_like(x)
            for head in range(h):
                rows = slice(head * k, (head + 1) * k)
                q = y @ w_q[rows].T + b_q[rows]
                key = y @ w_k[rows].T + b_k[rows]
                v = y @ w_v[rows].T + b_v[rows]
                if hasattr(block.attn, "ln_q"):
                    q, key = block.attn.ln_q(q), block.attn.ln_k(key)
                weights = (q @ key.transpose(1, 2) / k ** 0.5).softmax(-1)            # [b, n, n]
                slice_ = w_out[:, rows]                                               # [w, k]
                if getattr(block.attn, "head_scale", None) is not None:
                    slice_ = slice_ * block.attn.head_scale[head]
                whole += weights @ v @ slice_.T
                for token in range(n):
                    term = weights[:, 0, token, None] * (v[:, token] @ slice_.T) + b_out / (n * h)
                    attn[:, layer, token, head] = gamma_1 * term
            x = x + gamma_1 * (whole + b_out)
            added = gamma_2 * block.mlp(block.ln_2(x))
            mlp.append(added[:, 0])
            x = x + added
        mlp = torch.stack(mlp, 1)
        last = x[:, 0]
        mean = last.mean(-1)
        std = ((last - mean[:, None]).pow(2).mean(-1) + visual.ln_post.eps).sqrt()
        weight, bias, projection = visual.ln_post.weight, visual.ln_post.bias, visual.proj

        def project(terms, among):
            shape = (b,) + (1,) * (terms.ndim - 1)
            normed = (terms - mean.view(shape) / among) / std.view(shape) * weight + bias / among
            return normed @ projection

        representation = visual.ln_post(last) @ projection
        length = representation.norm(dim=-1)
        attn = project(attn, (2 * l + 1) * n * h) / length.view(b, 1, 1, 1, 1)
        mlp = project(mlp, 2 * l + 1) / length.view(b, 1, 1)
    visual.float()
    return {"attn": attn, "mlp": mlp, "representation": representation / length[:, None]}


def text_span(x, texts, texts_per_head, rank, eps):
    """TextSpan as section 4 and facts of the published code define it, with every projection recomputed.

    x [b, d] are a head's terms, texts [m, d] the pool. Returns picks, the reconstruction [b, d], the shares
    of variance and the rank used.
    """
    x, texts = np.asarray(x, np.float64), np.asarray(texts, np.float64)
    _, singular, vh = np.linalg.svd(x, full_matrices=False)
    kept = int((singular[:rank] > 16 * eps * singular[0]).sum())
    basis = vh[:kept]
    texts = texts @ basis.T @ basis
    mean = x.mean(axis=0)
    left = x - mean
    total = left.var(axis=0).sum()
    removed = np.zeros_like(left)
    picks, shares = [], []
    for _ in range(texts_per_head):
        projections = left @ texts.T                    # [b, m]
        pick = int(projections.std(axis=0).argmax())
        direction = texts[pick] / np.linalg.norm(texts[pick])
        part = np.outer(left @ direction, direction)
        shares.append(part.var(axis=0).sum() / total)
        removed = removed + part
        left = left - part
        texts = texts - np.outer(texts @ direction, direction)
        picks.append(pick)
    return picks, mean + removed, shares, kept


def ablations(attn, mlp, cls_attn, labels, classifier):
    """Accuracies of section 3.2 from whole arrays in double precision; the same keys as the fast ones."""
    attn, mlp, cls_attn = (np.asarray(a, np.float64) for a in (attn, mlp, cls_attn))
    layers = attn.sum(axis=2)

    def accuracy(representation):
        return 100 * np.mean((representation @ classifier).argmax(axis=1) == labels)

    def averaged(array):
        return np.broadcast_to(array.mean(axis=0), array.shape)

    no_cls = layers - cls_attn + averaged(cls_attn)
    curve = []
    for k in range(attn.shape[1] + 1):
        ablated = layers.copy()
        ablated[:, :k] = averaged(layers)[:, :k]
        curve.append(accuracy(ablated.sum(1) + mlp.sum(1)))
    return {"baseline": accuracy(layers.sum(1) + mlp.sum(1)),
            "mlp_ablated": accuracy(layers.sum(1) + averaged(mlp).sum(1)),
            "cls_ablated": accuracy(no_cls.sum(1) + mlp.sum(1)),
            "mlp_and_cls_ablated": accuracy(no_cls.sum(1) + averaged(mlp).sum(1)),
            "attention_ablated": curve}
