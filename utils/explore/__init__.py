"""The page of explore.py, on which one asks: what it shows, how it looks and how it is served. Its figures are those of
utils/analysis and of other scripts."""
