# Tokenizers: vocabularies, both kinds of merging, pre-tokenizer patterns, incremental detokenizing.
target_sources(muster_model PRIVATE tokenizer.c tokenizer_vocab.c tokenizer_special.c tokenizer_merge.c
  tokenizer_spm.c tokenizer_bpe.c tokenizer_ranks.c tokenizer_nfc.c pretokenizer.c streamer.c
  json_scan.c hf_tokenizer.c hf_vocab.c hf_pre.c hf_special.c hf_spm.c)
