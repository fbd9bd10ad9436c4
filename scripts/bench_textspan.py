"""TextSpan from covariances beside the literal algorithm, on the paper's sizes, in one run.

    python -m scripts.bench_textspan

One head: 5,000 images x 768 dimensions x 3,498 texts x 20 texts a head. The literal algorithm (that of the
tests) projects every image on every text anew for each pick.
"""
from utils import cli


def get_args_parser():
    parser = cli.make_parser(__doc__)
    parser.add_argument("--images", type=cli.POSITIVE, default=5000, help="images, the rows of the head's terms")
    parser.add_argument("--width", type=cli.POSITIVE, default=768, help="dimensions of the joint space")
    parser.add_argument("--texts", type=cli.POSITIVE, default=3498, help="texts in the pool")
    parser.add_argument("--texts_per_head", type=cli.POSITIVE, default=20, help="texts picked")
    parser.add_argument("--rank", type=cli.POSITIVE, default=60, help="singular directions at most")
    return parser


def main(args) -> None:
    import sys
    import time
    from pathlib import Path

    import numpy as np
    import torch

    from utils.analysis import textspan

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import literal

    rng = np.random.default_rng(0)
    x = (rng.normal(size=(args.images, 64)) * np.linspace(1, 0.1, 64)) @ rng.normal(size=(64, args.width)) / 500
    x = (x + rng.normal(size=args.width) / 500).astype(np.float32)
    pool = rng.normal(size=(args.texts, args.width))
    pool = (pool / np.linalg.norm(pool, axis=1, keepdims=True)).astype(np.float32)
    eps = np.finfo(np.float32).eps

    start = time.perf_counter()
    means, seconds = textspan.moments(x[:, None])
    span = textspan.text_span(means[0], seconds[0], torch.from_numpy(pool).double(), args.texts_per_head, args.rank, eps)
    fast = time.perf_counter() - start
    start = time.perf_counter()
    picks, reconstruction, *_ = literal.text_span(x, pool, args.texts_per_head, args.rank, eps)
    slow = time.perf_counter() - start
    error = np.abs(span.reconstruct(torch.from_numpy(x)).numpy() - reconstruction).max()
    print(f"literal {slow:.2f} s, from covariances {fast:.2f} s, ratio {slow / fast:.1f}")
    print(f"same texts in the same order: {span.picks == picks}; largest difference of the reconstructions: {error:.1e}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
