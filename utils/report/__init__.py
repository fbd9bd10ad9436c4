"""The page of make_report.py: what it shows, how it looks and how it is operated. Its figures are those of
utils/analysis and of other scripts, but for the scores by which images are chosen. And the tables of papers that
scripts/reproduce.py makes: their steps, and published figures beside ours."""
