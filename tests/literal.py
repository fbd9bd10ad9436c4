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


def description_reward(image_embeddings, text_embedding, logit_scale):
    """The reward of one description (EX2, section 3): the mean over single images [n, d] of the cosine between the
    image's embedding and the description's [d], times the scale."""
    text = np.asarray(text_embedding, np.float64)
    cosines = []
    for image in np.asarray(image_embeddings, np.float64):
        cosines.append(image @ text / (np.linalg.norm(image) * np.linalg.norm(text)))
    return logit_scale * sum(cosines) / len(cosines)


def run_image(visual, image, nudges=None):
    """One image [3, height, width] through an image tower in double precision, head by head.

    `nudges`, one [h, n, n] a layer, are added to the attention weights. Returns the layers' inner values, a dict each,
    and the unit representation [d].
    """
    x = visual.conv1(image[None])[0].flatten(1).T
    x = visual.ln_pre(torch.cat([visual.class_embedding[None], x]) + visual.positional_embedding)
    layers = []
    for index, block in enumerate(visual.transformer.resblocks):
        attn, width = block.attn, x.shape[1]
        h = attn.num_heads
        k = width // h
        gamma_1 = getattr(block.ls_1, "gamma", torch.ones(width, dtype=torch.float64))
        gamma_2 = getattr(block.ls_2, "gamma", torch.ones(width, dtype=torch.float64))
        scales = attn.head_scale.flatten() if getattr(attn, "head_scale", None) is not None else torch.ones(h).double()
        w_out = gamma_1[:, None] * attn.out_proj.weight * scales.repeat_interleave(k)
        b_out = gamma_1 * attn.out_proj.bias
        layer = {"before": x, "normed": block.ln_1(x), "w_out": w_out, "heads": []}
        outputs = []
        for head in range(h):
            q, key, v = (layer["normed"] @ attn.in_proj_weight[part * width + head * k:part * width + (head + 1) * k].T
                         + attn.in_proj_bias[part * width + head * k:part * width + (head + 1) * k]
                         for part in range(3))
            if hasattr(attn, "ln_q"):
                q, key = attn.ln_q(q), attn.ln_k(key)
            weights = (q @ key.T / k ** 0.5).softmax(dim=-1)
            if nudges is not None:
                weights = weights + nudges[index][head]
            outputs.append(weights @ v)
            layer["heads"].append({"q": q / k ** 0.5, "k": key, "v": v, "weights": weights, "output": outputs[-1]})
        layer["attended"] = torch.cat(outputs, 1) @ w_out.T + b_out
        layer["values"] = torch.cat([head["v"] for head in layer["heads"]], 1) @ w_out.T + b_out
        layer["middle"] = x + layer["attended"]
        layer["normed_middle"] = block.ln_2(layer["middle"])
        layer["hidden"] = block.mlp.gelu(block.mlp.c_fc(layer["normed_middle"]))
        layer["added"] = gamma_2 * block.mlp.c_proj(layer["hidden"])
        x = layer["middle"] + layer["added"]
        layers.append(layer)
    representation = visual.ln_post(x[0]) @ visual.proj
    return layers, representation / representation.norm()


def relevance(visual, image, column):
    """Relevance of every patch of one image by each method: a dict of [n - 1], in double precision.

    visual is in double precision; image [3, height, width]; column [d] is the predicted class's.
    """
    with torch.no_grad():
        layers, _ = run_image(visual, image)
    n, h = len(layers[0]["before"]), len(layers[0]["heads"])
    nudges = [torch.zeros(h, n, n, dtype=torch.float64, requires_grad=True) for _ in layers]
    gradients = torch.autograd.grad(run_image(visual, image, nudges)[1] @ column, nudges)
    maps, last = {}, layers[-1]
    maps["raw_attention"] = sum(head["weights"][0, 1:] for head in last["heads"]) / h

    joint = torch.eye(n, dtype=torch.float64)
    for layer in layers:
        with_skip = sum(head["weights"] for head in layer["heads"]) / h + torch.eye(n)
        joint = with_skip / with_skip.sum(dim=-1, keepdim=True) @ joint
    maps["rollout"] = joint[0, 1:]

    weighted = [head["weights"][0, 1:] * gradients[-1][i, 0, 1:].mean() for i, head in enumerate(last["heads"])]
    maps["gradcam"] = (sum(weighted) / h).clamp(min=0)

    patches = [visual.ln_post(value) @ visual.proj for value in last["values"][1:]]
    maps["maskclip"] = torch.stack([patch @ column / patch.norm() for patch in patches])

    attentions, tokens = _propagate(visual, layers, column)
    maps["lrp"] = tokens[1:].sum(dim=-1)
    maps["partial_lrp"] = sum(attentions[-1][i, 0, 1:].clamp(min=0) for i in range(h)) / h
    joint = torch.eye(n, dtype=torch.float64)
    for gradient, attention in zip(gradients, attentions):
        joint = (torch.eye(n) + sum((gradient[i] * attention[i]).clamp(min=0) for i in range(h)) / h) @ joint
    maps["chefer"] = joint[0, 1:]
    return maps


def _propagate(visual, layers, column):
    """Relevance of every layer's attention weights [h, n, n], first layer first, and of the first tokens [n, w]."""
    def stable(z):
        return z + torch.where(z < 0, -1e-9, 1e-9)

    def linear(x, weight, relevance):  # every single product of input and weight, [n, out, in]
        products = (x[:, None] * weight).clamp(min=0)
        return (products / stable(products.sum(dim=-1, keepdim=True)) * relevance[..., None]).sum(dim=1)

    def product(left, right, relevance):  # every single product, [i, m, j]
        products = left[:, :, None] * right[None]
        shares = products / stable(products.sum(dim=1, keepdim=True)) * relevance[:, None] / 2
        return shares.sum(dim=2), shares.sum(dim=0)

    def summands(x, y, relevance):
        parts = [x / stable(x + y) * relevance, y / stable(x + y) * relevance]
        sums = [part.sum() for part in parts]
        return [part * abs(own) / (abs(sums[0]) + abs(sums[1])) * relevance.sum() / own
                for part, own in zip(parts, sums)]

    last = layers[-1]["middle"] + layers[-1]["added"]
    normed = visual.ln_post(last[:1])
    representation = normed @ visual.proj
    relevance = linear(representation / representation.norm(), column[None], torch.ones(1, 1).double())
    tokens = torch.zeros_like(last)
    tokens[:1] = linear(normed, visual.proj.T, relevance)
    attentions = []
    for layer, block in zip(reversed(layers), reversed(visual.transformer.resblocks)):
        kept, mlp = summands(layer["middle"], layer["added"], tokens)
        hidden = linear(layer["hidden"], block.mlp.c_proj.weight, mlp)
        tokens = kept + linear(layer["normed_middle"], block.mlp.c_fc.weight, hidden)
        kept, attended = summands(layer["before"], layer["attended"], tokens)
        outputs = linear(torch.cat([head["output"] for head in layer["heads"]], 1), layer["w_out"], attended)
        into, attention = {"q": [], "k": [], "v": []}, []
        for head, output in zip(layer["heads"], outputs.chunk(len(layer["heads"]), dim=1)):
            weights, v = product(head["weights"], head["v"], output)
            q, k = product(head["q"], head["k"].T, weights)
            attention.append(weights)
            for name, part in (("q", q), ("k", k.T), ("v", v)):
                into[name].append(part)
        parts = torch.cat(into["q"] + into["k"] + into["v"], dim=1)
        tokens = kept + linear(layer["normed"], block.attn.in_proj_weight, parts)
        attentions.append(torch.stack(attention))
    return attentions[::-1], tokens


def segmentation_maps(attn, representation, classifier, grid):
    """Section 5: every token's terms [b, l, n, h, d], summed over layers and heads, times the classifier [d, classes];
    of the class token's predicted class, minus the mean over classes. Returns maps [b, rows, columns]."""
    attn, classifier = np.asarray(attn, np.float64), np.asarray(classifier, np.float64)
    logits = attn.sum(axis=(1, 3))[:, 1:] @ classifier                            # [b, n - 1, classes]
    predicted = (np.asarray(representation, np.float64) @ classifier).argmax(axis=1)
    return np.stack([(of_image[:, index] - of_image.mean(axis=1)).reshape(grid)
                     for of_image, index in zip(logits, predicted)])


def heat_map(patches, size):
    """A map [rows, columns] upsampled bilinearly to [size, size] (pixel centres, edges repeated), without negatives,
    scaled to [0, 1]."""
    heat = np.zeros((size, size))
    rows, columns = patches.shape
    for i in range(size):
        for j in range(size):
            y = min(max((i + 0.5) * rows / size - 0.5, 0), rows - 1)
            x = min(max((j + 0.5) * columns / size - 0.5, 0), columns - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            upper = patches[top, left] * (left + 1 - x) + patches[top, right] * (x - left)
            lower = patches[bottom, left] * (left + 1 - x) + patches[bottom, right] * (x - left)
            heat[i, j] = max(0, upper * (top + 1 - y) + lower * (y - top))
    if heat.max() == heat.min():
        return np.zeros((size, size))
    return (heat - heat.min()) / (heat.max() - heat.min())


def average_precision(scores, truths):
    """Sum over the distinct scores, from the highest, of the gain in recall times the precision."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        now = truths[chosen].sum() / truths.sum()
        total += (now - recall) * truths[chosen].mean()
        recall = now
    return total


def segmentation_figures(heats, masks):
    """The published metrics over all images: heats [b, s, s] in [0, 1], masks [b, s, s] of booleans."""
    right = pixels = 0
    intersections, unions, precisions = np.zeros(2), np.zeros(2), []
    for heat, mask in zip(heats, masks):
        predicted = heat > heat.mean()
        right, pixels = right + (predicted == mask).sum(), pixels + mask.size
        for label in (0, 1):
            intersections[label] += ((predicted == label) & (mask == label)).sum()
            unions[label] += ((predicted == label) | (mask == label)).sum()
        precisions.append(average_precision(np.concatenate([1 - heat.ravel(), heat.ravel()]),
                                            np.concatenate([~mask.ravel(), mask.ravel()])))
    iou = [intersections[label] / unions[label] if unions[label] else 0.0 for label in (0, 1)]
    return {"pixel_accuracy": right / pixels, "mean_iou": np.mean(iou), "iou_background": iou[0],
            "iou_foreground": iou[1], "mean_ap": np.mean(precisions)}


def group_accuracies(right, group, names):
    found = {}
    for index, name in enumerate(names):
        answers = [bool(right[i]) for i in range(len(right)) if group[i] == index]
        found[name] = 100 * sum(answers) / len(answers) if answers else None
    return found


def right_answers(run, classifier, chosen, last_layers, mlps):
    """Every component of every image replaced in copies of the arrays."""
    attn, mlp = run["attn"].astype(np.float64), run["mlp"].astype(np.float64)
    for layer in range(attn.shape[1]):
        for head in range(attn.shape[2]):
            if layer < attn.shape[1] - last_layers or (layer, head) in chosen:
                attn[:, layer, head] = attn[:, layer, head].mean(axis=0)
    if not mlps:
        mlp[:] = mlp.mean(axis=0)
    logits = (attn.sum(axis=(1, 2)) + mlp.sum(axis=1)) @ classifier
    return np.array([row.argmax() == label for row, label in zip(logits, run["labels"])])


def main_effects(terms, classifier, group, classes, places):
    """Balanced main effects of place and class of terms [b, d], as vectors of centred logits: two lists, one entry a
    level."""
    logits = [[sum(x * w for x, w in zip(term, classifier[:, k])) for k in range(classes)]
              for term in terms.astype(np.float64)]
    logits = [np.array(row) - sum(row) / classes for row in logits]
    cell = {(c, p): np.mean([row for row, g in zip(logits, group) if g == c * places + p], axis=0)
            for c in range(classes) for p in range(places)}
    grand = sum(cell.values()) / len(cell)
    return ([sum(cell[c, p] for c in range(classes)) / classes - grand for p in range(places)],
            [sum(cell[c, p] for p in range(places)) / places - grand for c in range(classes)])


def feature_score(component, whole, texts):
    """Mean over directions of the correlation of two series over images."""
    directions = np.linalg.qr(texts.astype(np.float64).T)[0].T
    found = []
    for direction in directions:
        own, all_ = component.astype(np.float64) @ direction, whole.astype(np.float64) @ direction
        found.append(np.corrcoef(own, all_)[0, 1] if np.ptp(component, axis=0).any() else 0.0)
    return np.mean(found)


def epsilon_squared(x, group):
    """Epsilon squared of a one-way analysis of variance, group by group, summed over the coordinates."""
    x = np.asarray(x, np.float64)
    names = sorted(set(group.tolist()))
    total = sum(((row - x.mean(0)) ** 2).sum() for row in x)
    within = sum(((row - x[group == name].mean(0)) ** 2).sum() for name in names for row in x[group == name])
    within_mean, total_mean = within / (len(x) - len(names)), total / (len(x) - 1)
    return (total_mean - within_mean) / total_mean


def partial_shares(x, groups):
    """What each attribute adds to the adjusted R2 of a regression of x [b, d] on the dummies of all `groups` [b]."""
    x = np.asarray(x, np.float64)

    def adjusted(names):
        columns = [np.ones(len(x))] + [(np.asarray(groups[name]) == value).astype(float)
                                       for name in names for value in np.unique(groups[name])]
        design = np.stack(columns, axis=1)
        left = x - design @ np.linalg.lstsq(design, x, rcond=None)[0]
        total = ((x - x.mean(axis=0)) ** 2).sum()
        return 1 - (left ** 2).sum() / total * (len(x) - 1) / (len(x) - np.linalg.matrix_rank(design))

    return {name: adjusted(list(groups)) - adjusted([other for other in groups if other != name]) for name in groups}


def zero_shot_labels(whole, texts):
    """Each image's best text, by scores of its unit-length representation, each text's centred over images."""
    unit = np.stack([image / np.linalg.norm(image) for image in np.asarray(whole, np.float64)])
    scores = np.stack([[image @ text for text in texts] for image in unit])
    for m in range(scores.shape[1]):
        scores[:, m] -= scores[:, m].mean()
    return np.array([row.argmax() for row in scores])


def decompose_text(text, ids, place, mask, x):
    """Every term of one text that enters an open_clip text tower as x [n, w], in double precision.

    `text` holds transformer, ln_final and text_projection; `mask` [n, n] is added to attention; the representation is
    read at `place`. Returns attn [l, n, h, d], of the tokens that may be read, and zeros for others; mlp [l + 1, d],
    without the projection's bias; that bias; the unit representation [d].
    """
    n, width = x.shape
    blocks = list(text.transformer.resblocks)
    l, h = len(blocks), blocks[0].attn.num_heads
    k = width // h
    seen = [token for token in range(n) if mask[place, token] > -torch.inf]
    mlp, attn = [x[place]], torch.zeros(l, n, h, width, dtype=torch.float64)
    for layer, block in enumerate(blocks):
        y, whole = block.ln_1(x), torch.zeros_like(x)
        w_out, b_out = block.attn.out_proj.weight, block.attn.out_proj.bias
        for head in range(h):
            q, key, v = (y @ block.attn.in_proj_weight[part * width + head * k:part * width + (head + 1) * k].T
                         + block.attn.in_proj_bias[part * width + head * k:part * width + (head + 1) * k]
                         for part in range(3))
            weights = (q @ key.T / k ** 0.5 + mask).softmax(-1)
            slice_ = w_out[:, head * k:(head + 1) * k]
            whole += weights @ v @ slice_.T
            for token in seen:
                attn[layer, token, head] = weights[place, token] * (slice_ @ v[token]) + b_out / (len(seen) * h)
        x = x + whole + b_out
        added = block.mlp(block.ln_2(x))
        mlp.append(added[place])
        x = x + added
    last = x[place]
    mean, std = last.mean(), (last.var(correction=0) + text.ln_final.eps).sqrt()
    weight, bias, projection = text.ln_final.weight, text.ln_final.bias, text.text_projection
    linear = isinstance(projection, torch.nn.Linear)
    matrix = projection.weight.T if linear else projection
    constant = projection.bias if linear and projection.bias is not None else torch.zeros(matrix.shape[1])

    def project(term, among):
        return ((term - mean / among) / std * weight + bias / among) @ matrix

    representation = text.ln_final(last) @ matrix + constant
    length = representation.norm()
    projected = torch.zeros(l, n, h, matrix.shape[1], dtype=torch.float64)
    projected[:, seen] = project(attn[:, seen], (2 * l + 1) * len(seen) * h) / length
    return {"attn": projected, "mlp": project(torch.stack(mlp), 2 * l + 1) / length, "bias": constant / length,
            "representation": representation / length}


def second_order(visual, image, layer):
    """Second-order effects of a layer's neurons on one image [3, height, width], token by token, in double precision.

    visual is in double precision. Returns c [J, N], the directions [N, J, d], and the layer's MLP term walked through
    the attention of later blocks [d], its bias included.
    """
    layers, _ = run_image(visual, image)
    final = layers[-1]["middle"][0] + layers[-1]["added"][0]
    final_std = (final.var(correction=0) + visual.ln_post.eps).sqrt()
    length = (visual.ln_post(final) @ visual.proj).norm()
    block = visual.transformer.resblocks[layer]
    gamma = getattr(block.ls_2, "gamma", torch.ones(final.shape[0], dtype=torch.float64))
    rows, p = block.mlp.c_proj.weight.T * gamma, layers[layer]["hidden"]           # [N, w], [n, N]
    coefficients, directions, walked = [], [], 0
    for later in range(layer + 1, len(layers)):
        own, x = visual.transformer.resblocks[later], layers[later]
        attn, norm = own.attn, own.ln_1
        std = (x["before"].var(dim=-1, correction=0) + norm.eps).sqrt()            # [n]
        k, width = x["heads"][0]["output"].shape[1], final.shape[0]
        for head in range(len(x["heads"])):
            a = x["heads"][head]["weights"][0]                                     # [n]
            w_v = attn.in_proj_weight[2 * width + head * k:2 * width + (head + 1) * k]
            w_o = x["w_out"][:, head * k:(head + 1) * k]

            def carry(row, w_v=w_v, w_o=w_o, norm=norm):
                out = w_o @ (w_v @ ((row - row.mean()) * norm.weight))
                return ((out - out.mean()) * visual.ln_post.weight) @ visual.proj

            coefficients.append(sum(a[i] * p[i] / std[i] for i in range(len(a))) / final_std / length)
            directions.append(torch.stack([carry(row) for row in rows]))
            walked = walked + sum(a[i] / std[i] * carry(layers[layer]["added"][i]) for i in range(len(a))) / final_std \
                / length
    return torch.stack(coefficients), torch.stack(directions, 1), walked


def soft_share(x, member):
    """The adjusted R2 of a regression of x [b, d] on memberships [b, m] that sum to 1, and a constant."""
    x, design = np.asarray(x, np.float64), np.column_stack([np.ones(len(x)), member])
    left = x - design @ np.linalg.lstsq(design, x, rcond=None)[0]
    rank = np.linalg.matrix_rank(design) - 1
    return 1 - (left ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum() * (len(x) - 1) / (len(x) - 1 - rank)
