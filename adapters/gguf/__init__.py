"""Files for llama.cpp: LoRAs and base models as GGUF, written with numpy alone.

| file | subject |
| --- | --- |
| ``peft_lora.py`` | reads a PEFT LoRA folder: matrices, scales, modules |
| ``lora_gguf.py`` | writes it as a GGUF LoRA that llama.cpp's server loads |
| ``base_gguf.py`` | writes a Hugging Face checkpoint of the llama family as GGUF |
| ``tensor_names.py`` | names, and the order of rows that rotary embeddings want |
"""
