"""Rows to be scored: what they must be, the files they come in, the units they are counted in.

rows            what a pair must be to be scored, content hash, the sidecar's columns
layouts         the forms of rows that trainers know, and in which columns their parts are
chats           rows as chats: every layout read as messages
shapes          shapes of rows: found by a schema and the first rows, checked
turns           a chat's turns: each answer with the conversation before it
pairs           rows of any shape as pairs that can be scored, or reasons why not
pieces          the pieces that rows are scored in, and the way back to one score
forms           chats as rows of another form, written whole or refused
words           texts as words in a plain spelling, and runs of n of them as hashes
language        the language of a text, by a library that brings its model along
contamination   rows that share a run of words with a benchmark
filters         rows that are left out before they are scored, because somebody asked
kinds           what a file holds, by its name and its first bytes; how it is unpacked
json_types      the one type that all values of a JSON field have
text_rows       the rows of JSONL, JSON and CSV files, one by one
imports         exact Parquet copies of files that are none
benchmark_files the texts of benchmark files
files           a pool's files, each once, footers read, columns checked
units           a pool → units: the grain of scoring, resuming and counting
sample          rows drawn by chance from units, and intervals for what they say of all rows
sidecars        the scores of one unit as a small Parquet file; which are finished
quarantine      rows and files that could not be scored, with reasons; how many may be
changes         what became of a pool's files between two runs
"""
