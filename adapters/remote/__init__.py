"""Backends for those who have an endpoint and no weights. No model library is imported here.

| file | backend | what a recipe becomes |
| --- | --- | --- |
| ``llama_server.py`` | ``llama_server``: llama.cpp's server with LoRAs loaded | LoRA scales in each request |
| ``vllm_server.py`` | ``vllm``: a vLLM server that reads a folder | a LoRA, merged here and loaded there |
| ``merge_service.py`` | ``merge_service``: a provider that holds the weights | control vectors in each request |
| ``openai_api.py`` | ``openai``: an endpoint with served models | none: one served model at a time |
| ``ensemble.py`` | ``ensemble``: closed models side by side | weights of their votes |

``settings.py`` has the study file's section of each, ``registry.py`` makes backends and evaluators from
them and says beforehand what is wrong, ``connection.py`` makes the client, ``scales.py`` reads a recipe
as one number per model, ``tokenizer.py`` lets a server's own tokenizer stand in for a local one.
"""
