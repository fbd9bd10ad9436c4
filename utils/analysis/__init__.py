"""One method a file, for components, of which attention heads are one kind: ablation, TextSpan, probes, and so
on. Functions take values and runs, and return values; scripts read options and write results."""
