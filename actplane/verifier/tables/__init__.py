"""What kernels, program types and hooks offer: helpers, kfuncs, context fields, instructions, refusals."""
