"""What all of `kernels` may use: the machine and its versions, files of records, the host's
memory."""
