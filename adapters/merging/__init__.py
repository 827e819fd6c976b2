"""Merging: the arithmetic of every method, the resident engine, and merges to a folder.

Import from the modules: ``engine.MergeEngine`` merges into live tensors or streams,
``directory.merge_to_directory`` writes a model folder, ``lora`` reads PEFT folders.
"""
