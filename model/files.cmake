# Model files: the GGUF reader and writer, architectures, models, synthetic models.
target_sources(muster_model PRIVATE gguf.c gguf_parse.c gguf_sniff.c gguf_get.c gguf_ollama.c gguf_write.c arch.c config.c model.c quantize.c
  safetensors.c hf.c hf_files.c hf_names.c hf_config.c hf_json.c synth.c synth_blocks.c synth_vocab.c thinking.c
  adapter.c adapter_gguf.c adapter_peft.c sampling.c)

