"""actplane: kernel-enforced policies for AI agents, compiled to eBPF in pure Python."""

__version__ = "0.1.0"
