"""Between covjax and the machine: files, signals, processes, hosts, flags."""
