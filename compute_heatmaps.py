"""Which patches of a picture speak for which text?

    python compute_heatmaps.py --model ViT-L-14 --pretrained laion2b_s32b_b82k --image photo.jpg \\
        --text "a red apple" "a dog"
    python compute_heatmaps.py --model emojiclip --image photo.jpg --text "a red apple" --layer 5 --head 1
    python compute_heatmaps.py --model timm:vit_base_patch14_dinov2.lvd142m --image photo.jpg --text "a dog" \\
        --maps output_dir/imagenet_train_maps_timm-vit_base_patch14_dinov2.lvd142m_to_ViT-L-14.safetensors

For each text, the contribution of every patch of the picture to their cosine similarity, through all attention heads,
or those of one layer, or one head (paper section 3.3). Any CLIP; any model of timm with the --maps that
compute_alignment.py made for it, for texts of the CLIP that it was mapped to. The picture may have any format that
Pillow reads. It keeps its aspect ratio: its shorter side gets the model's image size. A mapped model, and a CLIP whose
image tower comes from timm or pools by attention, gets the picture at its own size alone, cropped or squeezed by its
own transform. Of a model whose layers have different grids (Swin, MaxViT), one layer is shown on its own grid, and all
are added on the finest.

Prints what the similarity is the sum of: the patches, class and register tokens, the MLPs, convolution blocks, and the
embedding, which for a model with a class token is the same for every picture. Writes to --output, by default
./output_dir/{picture}_heatmaps.png: the picture beside its heat maps; and all numbers, as JSON, beside it.
"""
import argparse

from utils import cli, processes
from utils.cli import UserError

MOST_TEXTS = 24  # that a picture has room for
DRAWINGS = "emojiclip knows drawings only: its heat maps of a photograph mean little"


class Texts(argparse.Action):
    """Texts may follow one --text or several; together they replace those of a settings file."""

    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is self.default else before + values)


def get_args_parser():
    parser = cli.make_parser(__doc__)
    cli.add_model_options(parser)
    cli.add_model_settings(parser)
    parser.add_argument("--image", required=True, metavar="FILE", help="a picture")
    parser.add_argument("--text", required=True, nargs="+", action=Texts, metavar="TEXT",
                        help="one or more texts")
    parser.add_argument("--maps", metavar="FILE",
                        help="maps of compute_alignment.py from --model to a CLIP, for whose texts the heat maps then "
                             "are; needed with a model without texts (default: --model is the CLIP)")
    parser.add_argument("--layer", type=cli.NATURAL, help="only this layer's heads, counted from 0 (default: all)")
    parser.add_argument("--head", type=cli.NATURAL, help="only this head of --layer, counted from 0 (default: all)")
    parser.add_argument("--names", metavar="FILE.json",
                        help="names of heads, by compute_head_names.py: the title says what --head is about (default: "
                             "it does not)")
    cli.add_register_options(parser, "./output_dir")
    parser.add_argument("--output", metavar="FILE.png",
                        help="where the picture goes (default: ./output_dir/{picture}_heatmaps.png)")
    return parser


def check_options(args) -> None:
    """Refuse what needs no model to be seen."""
    if len(args.text) > MOST_TEXTS:
        raise UserError(f"--text: {len(args.text)} texts, and a picture has room for {MOST_TEXTS}; make several")
    if args.head is not None and args.layer is None:
        raise UserError(f"--head {args.head}: a head needs its layer; give --layer too, counted from 0")
    if args.names and args.head is None:
        raise UserError("--names says what a single head is about; give --layer and --head too, or leave it out")
    if args.model.startswith("timm:") and not args.maps:
        raise UserError(f"--model {args.model} has no text side; give --maps, which compute_alignment.py makes")


def main(args) -> None:
    from pathlib import Path

    args.output = args.output or f"./output_dir/{Path(args.image).stem}_heatmaps.png"
    check_options(args)

    # The picture, the model, and the texts; a wrong file is found before a large model is loaded.
    from utils.data import pictures

    pictures.check_output(args.output, args.image)
    picture = pictures.read_option(args.image)
    cli.loading(args.model, args.pretrained)

    from utils.analysis import alignment, heatmaps
    from utils.analysis.names import naming
    from utils.analysis.zeroshot import embed_texts
    from utils.decompose import registers
    from utils.decompose.decomposer import Decomposer
    from utils.models.loading import load, load_text_side

    device = processes.pick_device(args.device)
    role = naming.role_of(args.names, args.layer, args.head) if args.names else None
    if args.maps:
        model, maps = alignment.load_model(args.model, args.pretrained, args.maps, device, args.seed,
                                           cli.model_settings(args))
        clip = load_text_side(alignment.text_side(maps.about), args.model, args.pretrained, device, args.seed)
    else:
        model, maps = load(args.model, args.pretrained, device, args.seed, True, cli.model_settings(args)), None
        clip = model
    if args.names:
        naming.role_of(args.names, args.layer, args.head, maps.sha256 if maps else model.weights_hash)
    directions = embed_texts(clip, args.text, len(args.text), "--text")

    # What each patch adds to each similarity.
    some = registers.read(args.registers, args.artefacts, "./output_dir", model)
    decomposer = Decomposer(model, registers=some)
    pixels, shown = heatmaps.prepare(picture, model, None if maps else decomposer.patch_size)
    found = heatmaps.explain(decomposer, pixels, args.text, directions, args.layer, args.head,
                             maps and (maps.weight, maps.bias))
    for one in found:
        print(f"{one.text}\n{heatmaps.table(one)}\n")

    from utils.plots import sheets  # late: pyplot takes a second

    path = Path(args.output)
    name = f"{args.model}, mapped to {clip.name}" if args.maps else args.model
    title = f"{name}: what each patch adds, through {heatmaps.selection(args.layer, args.head)}"
    title += f" ({role})" if role else ""
    if clip.name == "emojiclip":
        title += f"; {DRAWINGS}"
        print(f"{DRAWINGS}\n")
    sheets.heat_maps(shown, [(one.text, one.patches, heatmaps.table(one)) for one in found], title, path)
    rows, columns = found[0].patches.shape
    cli.save_result(path.with_suffix(".json"), {
        "model": args.model, "pretrained": model.source, "weights_sha256": model.weights_hash,
        "model_settings": model.settings,
        "image": args.image, **alignment.describe(maps), "registers": some and some.record(),
        "layer": args.layer, "head": args.head, "name": role,
        "pixels": list(pixels.shape[-2:]), "grid": [rows, columns],
        "texts": [{"text": one.text, "similarity": one.similarity, "parts": one.parts, "patches": one.patches.tolist()}
                  for one in found]})
    print(f"{rows} x {columns} patches, {cli.counted(len(found), 'text')} -> {path}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
