"""ELF objects as clang writes them: sections, maps, BTF and CO-RE, linked to programs as libbpf would."""
