"""The words that every room speaks: tensors, signatures, models, datasets, errors, registry, configs.

Needs the standard library, numpy and msgspec only, and imports no other room.
"""
