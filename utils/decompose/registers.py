"""Tokens with outlying norms, and test-time registers, which take them away (arXiv 2506.08010).

Some models keep global content in a few patch tokens of outlying norm (arXiv 2309.16588). A few neurons write it. A
register is a token of zeros beside the class token and the patches; at each of these neurons it gets the activation of
the largest absolute value over all tokens, with its sign, and the patches get 0. The class token keeps its own. Known
for the towers of the fast path (utils/decompose/tower.py).
"""
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.cli import UserError
from utils.decompose import tower
from utils.decompose.tower import Tower
from utils.models.model import Model
from utils.runs import files


@dataclass(frozen=True)
class Registers:
    """So many register tokens, and the neurons, as (layer, neuron), that write to them; neuron i to register i mod
    `number`."""
    number: int
    neurons: tuple[tuple[int, int], ...]

    def record(self) -> dict:
        """As manifests hold it."""
        return {"number": self.number, "neurons": [f"{layer}.{neuron}" for layer, neuron in self.neurons],
                "layers": sorted({layer for layer, _ in self.neurons})}


def read(number: int, path: str | None, folder: str, model: Model) -> Registers | None:
    """The registers of a model, whose neurons stand in the file that compute_artefacts.py wrote: the one at `path`, or
    the only one of the model in `folder`; None for none at all.

    Raises UserError for neurons without a register, where there is no such file or several, and for one of other
    weights or without neurons.
    """
    if not number:
        if path:
            raise UserError(f"--artefacts {path}: names the neurons of registers; give --registers 1, too")
        return None
    hint = f"python compute_artefacts.py --model {model.name} --output_dir {folder}"
    found = [Path(path)] if path else sorted(Path(folder).glob(f"*_artefacts_{model.name}.json"))
    if len(found) != 1 or not found[0].is_file():
        raise UserError(f"--registers {number}: " + (f"{len(found)} files in {folder} name register neurons of "
                        f"{model.name}; choose one with --artefacts" if len(found) > 1 else
                        f"{found[0] if found else folder + '/*_artefacts_' + model.name + '.json'} does not exist, "
                        f"which names register neurons; make it with: {hint}"))
    try:
        content = json.loads(found[0].read_text(encoding="utf-8"))
        neurons = tuple(tuple(map(int, entry["neuron"].split("."))) for entry in content["register_neurons"])
        weights = content["weights_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{found[0]}: does not name register neurons; make it again with: {hint}") from error
    if weights != model.weights_hash:
        raise UserError(f"{found[0]}: was made with other weights than --model {model.name} has; make it again with: "
                        f"{hint}")
    files.same_settings(str(found[0]), content.get("model_settings"), model.settings, hint)
    if not neurons:
        raise UserError(f"{found[0]}: the model has no outlying tokens, and so no register neurons; leave --registers "
                        "out")
    return Registers(number, neurons)


def recorded(manifest: dict | None) -> Registers | None:
    """The registers that a run was made with, as its manifest holds them; None for none at all."""
    record = (manifest or {}).get("registers")
    return record and Registers(record["number"], tuple(tuple(map(int, neuron.split(".")))
                                                        for neuron in record["neurons"]))


def with_registers(read_tower: Tower, visual: nn.Module, registers: Registers) -> Tower:
    """A tower whose tokens are the class token, the registers and the patches, in this order."""
    blocks, width = list(read_tower.blocks), read_tower.projection.shape[0]
    for layer in {layer for layer, _ in registers.neurons}:
        block = visual.transformer.resblocks[layer]
        places = [(neuron, 1 + i % registers.number) for i, (own, neuron) in enumerate(registers.neurons)
                  if own == layer]

        def mlp(x: Tensor, block=block, places=places) -> Tensor:
            hidden = block.mlp[:-1](x)
            for neuron, place in places:
                values = hidden[..., neuron]                                       # [b, n]
                largest = values.gather(1, values.abs().argmax(dim=1, keepdim=True))
                values[:, 1:] = 0
                values[:, place] = largest[:, 0]
            return block.ls_2(block.mlp[-1](hidden))

        blocks[layer] = replace(blocks[layer], mlp=mlp)

    def embed(images: Tensor) -> Tensor:
        x = read_tower.embed(images)
        return torch.cat([x[:, :1], x.new_zeros(len(x), registers.number, width), x[:, 1:]], dim=1)

    return replace(read_tower, embed=embed, blocks=blocks)


@dataclass
class Layer:
    """What a block leaves, and what it read."""
    norms: Tensor        # [b, n]: lengths of the tokens after it
    attention: Tensor    # [b, n]: the class token's attention, mean over heads
    activations: Tensor  # [b, n, neurons]


@torch.no_grad()
def layers(read_tower: Tower, visual: nn.Module, images: Tensor) -> Iterator[Layer]:
    """Norms, attention and activations, block by block, of images [b, 3, height, width]."""
    x = read_tower.embed(images)
    for block, own in zip(read_tower.blocks, visual.transformer.resblocks):
        added, _, attended = tower.attend(block, x, only_class_token=False)
        x = x + added
        normed = block.norm_2(x)
        hidden = own.mlp[:-1](normed)
        x = x + block.mlp(normed)
        yield Layer(x.norm(dim=-1), attended.weights().mean(dim=1), hidden)
