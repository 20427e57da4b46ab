target_sources(muster_worker PRIVATE shard_comm.c solo.c embedder.c)
