"""Checkpoints: safetensors files, an index in JSON that says where every part of every tensor lies, a marker last.

    step-00000100/g3-5d1f-00000.safetensors   what rank 0 of generation 3 wrote; `safetensors` alone opens it
                  index.json                  of each tensor: dtype, shape, blocks; of each block: file, place, SHA-256
                  COMMITTED.json              written last and only where none is; without it nothing counts

A checkpoint is a prefix in a store (`shoal_core.store`). Nothing is renamed there and nothing unpickled: files of
attempts that came to nothing may lie beside those that the marker names, and are never read.
"""
