"""Methods that combine task vectors, by kernels in C and in torch."""
