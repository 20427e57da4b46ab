mu_test(test_solo test_solo.c LIBS muster_worker)
target_link_options(test_solo PRIVATE -Wl,--wrap=mu_now_ns) # its clock can jump
mu_test(test_drafter test_drafter.c LIBS muster_worker)
