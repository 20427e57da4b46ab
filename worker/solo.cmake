target_sources(muster_worker PRIVATE shard_comm.c device_link.c solo.c embedder.c)
