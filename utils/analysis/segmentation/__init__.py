"""Zero-shot segmentation (arXiv 2310.05916, section 5): which patches of an image speak for its class, by one of
METHODS (methods.py), and how such maps compare with masks of the foreground (figures.py)."""

METHODS = ("decomposition", "raw_attention", "rollout", "gradcam", "lrp", "partial_lrp", "chefer", "maskclip")
NEURONS = "neurons"  # one more, which needs what compute_second_order.py wrote
