"""
The one door to the kernel: its types, and maps, programs, links and ring buffers made through bpf().

    syscall, attributes     the call itself, and the layout of each command
    btf, btf_write          the kernel's types, read one at a time; types of our own, written
    relocate                what only the running kernel knows, put into instructions
    maps, programs, links, pins, ringbuf, stats
    collection              all of these for one object, closed as one
    features, canary        what this kernel really does
"""
