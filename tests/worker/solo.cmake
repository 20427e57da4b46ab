mu_test(test_solo test_solo.c LIBS muster_worker)
mu_test(test_drafter test_drafter.c LIBS muster_worker)
