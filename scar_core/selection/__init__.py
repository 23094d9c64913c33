"""Exactly the best rows of a scored pool, from sidecars alone and without torch.

order           the key of a row: score, content hash, place
radix           histograms of key digits; the cut they lead to
precision       bf16 scores, fp32 near the cut
budget          how long a beginning of the order fits into a budget of tokens
keep            what to keep, quantiles
drift           whether scores are spread as they were
quotas          what each group contributes, by largest remainder
labels          a column of the pool as groups, and how many rows each has
groups          a cut for every group at once
bands           rows of like length, and the cap of each
luck            soft sampling: an order by score and noise of each row's own
combine         an order by a weighted sum of the score and other columns
fronts          an order by Pareto fronts of two numbers
policies        the orders that flags ask for, and which go together
near            rows that are nearly the same: MinHash, banded, linked into clusters
copies          rows whose content better rows have, found range by range
picked          what a run selected, row by row; which of it is new by content
extremes        the best and worst rows, and those around the cut
report          the numbers of a selection for a person
trainers        what LLaMA-Factory, Axolotl and TRL need to be told of the rows
card            the dataset card: how a selection is loaded, and how it was chosen
"""
