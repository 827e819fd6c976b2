"""The merge service: a provider holds a pool of models, users send recipes and get answers.

It knows nothing of studies. Its client is ``mergefront.adapters.remote.merge_service``.
"""
