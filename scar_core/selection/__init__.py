"""Exactly the best rows of a scored pool, from sidecars alone and without torch.

order           the key of a row: score, content hash, place
radix           histograms of key digits; the cut they lead to
precision       bf16 scores, fp32 near the cut
keep            what to keep, quantiles, best and worst rows
drift           whether scores are spread as they were
report          the numbers of a selection for a person
"""
