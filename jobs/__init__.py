"""The jobs: thin layers that wire Ray around `scar_core`, in the order a pool meets them.

synthesize   (instruction, human) rows + an LLM → quadruples
judge        quadruples + an LLM → the same with scores from 0 to 9
train        quadruples → a ranker directory
leave_one_out  recipes on sources that they did not train on
ablate       what each part of a recipe is worth
plan         pool + ranker → what scoring it would take, before anything is paid for
score        pool + ranker → scores, one sidecar per unit
select_rows  scores + a share → the best rows, exactly, with a manifest and a report
curate       score, select, report: the main job
doctor       whether such a run has what it needs
verify       a published directory → what is not as it was published
explain      a selection + a row → its score, rank and threshold, and why it was kept or not
diff         two selections → the rows that entered and left, and why

cli, progress, checks and *_stages are what they are made of; sample is what `make demo` runs on.
"""
