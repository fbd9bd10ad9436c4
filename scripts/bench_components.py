"""Time and exactness of the decomposition of timm models by heads, beside a plain forward pass in the same run.

    python -m scripts.bench_components
    python -m scripts.bench_components --models vit_base_patch14_dinov2 --batch_size 2 --threads 1

Random weights. The two take turns; the ratio of the fastest of each is printed, by the clock and by processor time
(which other programs on the machine disturb less).
"""
from utils import cli

MODELS = ["vit_small_patch16_224", "deit_small_distilled_patch16_224", "vit_small_patch14_reg4_dinov2",
          "vit_base_patch16_siglip_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "maxvit_tiny_rw_224"]


def get_args_parser():
    parser = cli.make_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, help="names of timm models")
    parser.add_argument("--batch_size", type=cli.POSITIVE, default=4, help="images a forward pass")
    parser.add_argument("--repeats", type=cli.POSITIVE, default=4, help="turns")
    parser.add_argument("--threads", type=cli.POSITIVE, default=2, help="of torch")
    return parser


def main(args) -> None:
    import time

    import timm
    import torch
    import torch.nn.functional as F

    from utils.decompose.walk import decompose

    torch.set_num_threads(args.threads)
    print(f"{'model':<36}{'components':>12}{'plain, s':>10}{'clock':>8}{'processor':>11}{'error':>9}")
    for name in args.models:
        model = timm.create_model(name, num_classes=0).eval().requires_grad_(False)
        images = torch.randn(args.batch_size, *model.pretrained_cfg["input_size"])
        times = {"plain": [], "ours": []}
        for _ in range(args.repeats + 1):  # the first turn warms up
            for what, function in (("plain", model), ("ours", lambda images, model=model: decompose(model, images))):
                start = time.perf_counter(), time.process_time()
                with torch.no_grad():
                    found = function(images)
                times[what].append((time.perf_counter() - start[0], time.process_time() - start[1]))
        plain, ours = ([min(turn[clock] for turn in times[what][1:]) for clock in (0, 1)] for what in ("plain", "ours"))
        error = (found.terms.sum(dim=1) - F.normalize(model(images), dim=-1)).abs().max()
        print(f"{name:<36}{len(found.names):>12}{plain[0]:>10.2f}{ours[0] / plain[0]:>8.2f}{ours[1] / plain[1]:>11.2f}"
              f"{error.item():>9.0e}", flush=True)


if __name__ == "__main__":
    cli.run(main, get_args_parser())
