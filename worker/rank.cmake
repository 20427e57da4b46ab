target_sources(muster_worker PRIVATE scheduler.c doorbell.c doorbell_setup.c gang_file.c engine.c leader.c rank.c constraint.c)
