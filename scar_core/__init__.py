"""The core of SCAR Curate: everything but the cluster. Imports nothing, so selecting starts light.

Modules, each importing only from lines above its own:

errors      the tree of errors an operator can fix
storage     one door to files, local and object storage
rows        what a pair must be to be scored, content hash, the sidecar's columns
units       a pool → units with fingerprints, from Parquet footers
sidecars    the scores of one unit as a small Parquet file; which are finished
quadruples  quadruples from files, checked, split by instruction
encoding    texts → token ids, truncation counted
encoders    transformers' own encoders from a configuration, old parameter names
model       RankerConfig, RankerOutput, Ranker
packing     many texts in one padding-free batch
losses      tensors in, tensors out
training    one step, the metrics; no files
ranker_files  the files of a ranker: found, fetched, read, hashed
checkpoint  a ranker directory; also reads and writes scar-tool's
scoring     Scorer: pairs → scores, in input order
selection   key, radix, ties
manifest    publish and open: data first, manifest last
report      the numbers of a run for a person

Words: a *pair* is one (instruction, response) row of a pool; a *quadruple* an instruction with its
human, referenced and direct responses; *form* what a response looks like, *surprisal* how it
follows from its instruction; the *score* is higher the closer a response is to direct style and
quality; a *unit* is a range of rows of one file, its scores a *sidecar*; rows that cannot be
scored are *quarantined* with a reason; a *run* publishes one directory, its manifest last.
"""
