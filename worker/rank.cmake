target_sources(muster_worker PRIVATE scheduler.c sched_step.c sched_draft.c sched_model.c draft_pace.c kv_pool.c doorbell.c doorbell_setup.c gang_file.c engine.c leader.c rank.c constraint.c)
