"""The model: texts to tokens, an encoder, two heads; how it is run, and the directory it lives in.

encoding        texts → token ids, truncation counted
cutting         pairs → token ids of pieces: cut, cut from the left, or in windows
encoders        transformers' own encoders; gte's old parameter names
model           RankerConfig, RankerOutput, Ranker
linears         which library multiplies matrices, in which precision
attention       many texts end to end, each attending to itself
packing         texts → features, without padding
budget          texts computed together: a budget of tokens that shrinks with the memory
files           the files of a ranker: found, fetched, read, hashed
checkpoint      a ranker directory; also reads and writes scar-tool's
"""
