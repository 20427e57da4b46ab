# Models by name, from the stores that people already have.
target_sources(muster_model PRIVATE store.c store_name.c store_peek.c store_dir.c store_list.c store_scan.c
  store_ollama.c store_manifest.c store_own.c modelfile.c)
target_link_libraries(muster_model PRIVATE PkgConfig::JANSSON PkgConfig::CRYPTO)
