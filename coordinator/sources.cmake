target_sources(muster_coordinator PRIVATE serve.c gpus.c hub.c request.c constraint.c replica.c engine.c front.c text.c chat.c embed.c local_worker.c msg.c)
