"""The core of SCAR Curate: everything but the cluster. Imports nothing, so selecting starts light.

Rooms, each importing only from lines above its own; a folder's own docstring lists what is in it:

errors          the tree of errors an operator can fix
local_files     files of this machine, written whole or not at all
stores          how stores are reached: options, credentials, retries, their errors
storage         one door to files, local and object storage
processes       processes of this machine, and whether they are gone
lease_terms     the chain of terms of a lease, as it is stored
lease           one run at a time on a curation
store_checks    whether stores can be read and written, asked before a start
manifest        publish and open: data first, manifest last
tables          tables as Parquet files, with what a manifest says of them
pool/           rows to be scored: files, units, sidecars
ranker/         the model: texts to tokens, encoders, heads, a ranker directory
training/       quadruples to a ranker
scoring         Scorer: pairs → scores, in input order
selection/      exactly the best rows, from sidecars alone

Words: a *pair* is one (instruction, response) row of a pool; a *quadruple* an instruction with its
human, referenced and direct responses; *form* what a response looks like, *surprisal* how it
follows from its instruction; the *score* is higher the closer a response is to direct style and
quality; a *unit* is a range of rows of one file, its scores a *sidecar*; rows that cannot be
scored are *quarantined* with a reason; a *run* publishes one directory, its manifest last.
"""
