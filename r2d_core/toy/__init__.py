"""The toy world: a fictional language in which harm is exact and harmless.

policy       which kinds are banned
language     words, items, facts, procedures
requests     what can be said, and its dress
splits       which items are for training, development, reports
data         what the base model learns
base         tokenizer, base model, its gate
arms         what each method is taught
evaluation   what is asked of a model, and what attacks may draw on
judge        the exact judge
measure      attacks and harmless questions put to one model
stages       base model, expanded vocabulary, trained arm
results      an experiment's tables, methods compared in pairs
findings     what it found, in computed sentences
"""
