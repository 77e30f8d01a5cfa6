"""Raw text -> tokenizer -> token shards -> samples, one room a leg of the journey.

`sources`    where text comes from: globs, stores, formats; documents, and what is no document
`tokenizer`  a tokenizer.json in use: what it may say, text to token ids
`bpe`        training one
`writing`    a corpus: the recipe, shards, their manifest
`chat`       conversations to packed samples for fine-tuning, and reading those
`reading`    a finished corpus: the order of its samples, its stores, checking and showing it
`jobs`       work in parts, in threads or on Ray; whose folder `--out` is

Arrows run one way, from each room to those after it: `writing | bpe | chat`, `reading`, `tokenizer`, `jobs`, `sources`,
and then the modules beside the rooms (`files`, `arrow`, `progress`, `retry`, `place`). Ray is known to
`jobs` alone. Programs outside of the project come in by `build`, `reader`, `inspection` and `errors`.
"""
