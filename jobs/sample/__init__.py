"""The embedded sample behind `make demo`: an illustration, not training data.

quads.jsonl, pool_*.jsonl   texts written for this project
`python -m jobs.sample FOLDER` writes the pool as Parquet, as users have theirs.
"""
