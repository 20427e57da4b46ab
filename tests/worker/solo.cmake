mu_test(test_solo test_solo.c LIBS muster_worker)
