"""The page of make_report.py: what it shows, how it looks and how it is operated. It computes no figure of its own."""
