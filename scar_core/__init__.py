"""The core of SCAR Curate: everything but the cluster. Imports nothing, so selecting starts light.

Modules, each importing only from lines above its own:

errors          the tree of errors an operator can fix
local_files     files of this machine, written whole or not at all
storage         one door to files, local and object storage
rows            what a pair must be to be scored, content hash, the sidecar's columns
pool            a pool's Parquet files, footers read, columns checked
units           a pool → units: the grain of scoring, resuming and counting
sidecars        the scores of one unit as a small Parquet file; which are finished
quadruples      what a quadruple must be to be trained on, checks with reasons
quadruple_files quadruples from JSONL, JSON, Parquet or `datasets`
split           which quadruples are trained on, by instruction, seeded
encoding        texts → token ids, truncation counted
encoders        transformers' own encoders; gte's old parameter names
model           RankerConfig, RankerOutput, Ranker
ranker_files    the files of a ranker: found, fetched, read, hashed
checkpoint      a ranker directory; also reads and writes scar-tool's
losses          hinge, triplet regulariser, quality gate; tensors in, tensors out
batches         quadruples as token ids, dealt into batches and shares
accuracy        pairwise accuracy per kind and source, beside the length baseline
training        one step; no files
epochs          the epochs, told as they go, the best one kept
card            the model card
linears         which library multiplies matrices, in which precision
attention       many texts end to end, each attending to itself
packing         texts → features, without padding
scoring         Scorer: pairs → scores, in input order
order           the key of a row: score, content hash, place
radix           histograms of key digits; the cut they lead to
precision       bf16 scores, fp32 near the cut
selection       what to keep, quantiles, best and worst rows
manifest        publish and open: data first, manifest last
report          the numbers of a selection for a person

Words: a *pair* is one (instruction, response) row of a pool; a *quadruple* an instruction with its
human, referenced and direct responses; *form* what a response looks like, *surprisal* how it
follows from its instruction; the *score* is higher the closer a response is to direct style and
quality; a *unit* is a range of rows of one file, its scores a *sidecar*; rows that cannot be
scored are *quarantined* with a reason; a *run* publishes one directory, its manifest last.
"""
