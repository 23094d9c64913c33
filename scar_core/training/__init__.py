"""Quadruples to a ranker: read and checked, dealt into batches, learned from, measured.

quadruples      what a quadruple must be to be trained on, checks with reasons
quadruple_files quadruples from JSONL, JSON, Parquet or `datasets`
quadruple_tables the same with all their columns, as tables
split           which quadruples are trained on, by instruction, seeded
losses          hinge, triplet regulariser, quality gate; tensors in, tensors out
augment         copies whose responses are cut, so that length tells little
batches         quadruples as token ids, dealt into batches, shares and groups
batching        texts end to end where that is right for an encoder, else padded
deal            quadruples dealt to train, validation and test, augmented, tokenized
accuracy        pairwise accuracy per kind and source, beside the length baseline
heldout         pairs won on rows never seen, pooled over seeds, with intervals
trainer         one step; no files
epochs          the epochs, told as they go, the best one kept
card            the model card
"""
