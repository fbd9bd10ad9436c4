"""A Model is what was loaded, by whatever name and from whatever library."""
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.cli import UserError, describe


@dataclass(eq=False)
class Model:
    """A vision model in eval mode, with a text side where it has one."""
    name: str                # in file names
    source: str              # where the weights come from
    device: torch.device
    network: nn.Module       # all of it, by whose weights it is known
    tower: nn.Module         # its image side: what is decomposed
    encode_image: Callable[[Tensor], Tensor]  # images [b, 3, height, width] -> representations [b, d]
    preprocess: Callable     # PIL image -> float tensor [3, height, width]
    image_size: tuple[int, int]
    class_token: bool        # whether the representation is read from a class token, the first one
    prefix_tokens: int       # before the patches: class tokens and registers
    tokenizer: Callable[[list[str]], Tensor] | None = None    # texts -> token ids [m, context length]
    encode_text: Callable[[list[str]], Tensor] | None = None  # texts -> representations [m, d]
    cut: Callable[[list[str]], list[int]] = lambda texts: []  # the indices of texts that have more tokens than that
    own_tokenizer: Callable | None = None                     # gives the library's own, which knows words of token ids
    logit_scale: float | None = None
    settings: dict = field(default_factory=dict)  # of the weights: mean, std, interpolation, quick_gelu, ...

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of all weights, by which arrays of different models are told apart."""
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @torch.inference_mode()
    def embed_images(self, images: Tensor) -> Tensor:
        """Unit embeddings [b, d] of images [b, 3, height, width], normalised in float32 whatever the network's
        precision."""
        images = images.to(self.device, next(self.network.parameters()).dtype)
        return F.normalize(self.encode_image(images).float(), dim=-1)

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings [m, d] of texts, normalised in float32 whatever the network's precision."""
        return F.normalize(self.encode_text(texts).float(), dim=-1)


def frozen(network: nn.Module, device: torch.device) -> nn.Module:
    """A network on a device, in eval mode and without gradients."""
    return network.to(device).eval().requires_grad_(False)


@contextmanager
def readable_errors(what: str, look_at: str) -> Iterator[None]:
    """Turn the failures of a library that loads `what` into a UserError that says what to `look_at`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # hubs, files and formats fail in many ways, and all of them end the run
        raise UserError(f"{what} cannot be loaded ({type(error).__name__}: {describe(error)[:300]}); "
                        f"check {look_at}") from error
