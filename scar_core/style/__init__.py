"""Style in figures: what responses look like, how they follow, how alike they are.

words           words, sentences, syllables of prose; function words and transitions
layout          Markdown as a person sees it, and the prose between
metrics         what each form metric means: source, unit, when it is undefined
form            the form metrics of texts, a column each
consistency     how far each metric spreads over a set, with bootstrap intervals
matching        rows drawn by chance that are as long as other rows
causal          many texts end to end through a causal language model
lm_tokens       prompts and responses as token ids of a language model
lm_losses       mean losses of texts, batch by batch within a budget of tokens
surprisal       SurprisalScorer: perplexity of a response given its instruction, and IFD
"""
