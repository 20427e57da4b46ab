target_sources(muster_worker PRIVATE shard_comm.c device_link.c measure.c seat.c solo.c embedder.c drafter.c)
