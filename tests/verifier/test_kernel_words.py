"""What kernels say of objects, graphs, interrupts, speculation and jump tables, and the ids that it stands for."""

from __future__ import annotations

import pytest

from actplane.verifier.kernel_log import id_of_message

MESSAGES = {
    "R0 pointer arithmetic of map value goes out of range, prohibited for !root": "speculation",
    "R1 has pointer with unsupported alu operation, pointer arithmetic with it prohibited for !root": "speculation",
    "R3 variable stack access prohibited for !root, var_off=(0x0; 0x7) off=0": "stack-variable-offset",
    "loading/calling other bpf or kernel functions are allowed for CAP_BPF and CAP_SYS_ADMIN": "privileged-only",
    "expected an initialized irq flag as arg#0": "irq-flag",
    "cannot restore irq state out of order, expected id=2 acquired at insn_idx=4": "irq-flag",
    "multiple exception callback tags for main subprog": "exception",
    "bpf_spin_lock at off=16 must be held for bpf_list_head": "graph",
    "held lock and object are not in the same allocation": "graph",
    "bpf_list_node not found at offset=0": "graph",
    "operation on bpf_list_head expects arg#1 bpf_list_node at offset=48 in struct foo": "graph",
    "arg#0 expected pointer to allocated object": "allocated-object",
    "arg#0 doesn't point to a type with bpf_refcount field": "allocated-object",
    "bpf_obj_new/bpf_percpu_obj_new type ID argument must be of a struct": "allocated-object",
    "R1 !read_ok": "uninitialized-register",
    # Names that are words of other messages.
    "program of this type cannot use helper bpf_spin_lock#93": "helper-not-allowed",
    "unknown func bpf_override_return#58": "helper-not-allowed",
    "invalid func unknown#206": "unknown-helper",
    "calling kernel function bpf_dynptr_from_skb is not allowed": "kfunc-not-allowed",
    "access beyond the end of member module_name (mend:4) in struct kallsym_iter with off 0 size 8": "struct-access",
    "access beyond the end of member ops (mend:8) in struct bpf_map with off 4 size 8": "map-pointer-access",
    "Attaching tracing programs to function '__rcu_read_lock' is rejected.": "attach",
    "Cannot replace kernel functions": "attach",
    "tracing progs cannot use bpf_spin_lock yet": "map-not-allowed",
    "bpf_spin_lock cannot be accessed directly by load/store": "map-value-access",
    "direct access to bpf_list_node is disallowed": "map-value-access",
    "BPF_EXIT instruction in main prog cannot be used inside bpf_rcu_read_lock-ed region": "section",
    "BPF_EXIT instruction in main prog cannot be used inside bpf_spin_lock-ed region": "lock",
    "BPF_EXIT instruction in main prog would lead to reference leak": "reference-leak",
    "R0 leaks addr as return value": "pointer-leak",
    "kptr access misaligned expected=0 off=7": "kptr-access",
    # What older kernels say otherwise.
    "R1 invalid mem access 'inv'": "not-a-pointer",
    "R0 pointer arithmetic on sock_or_null prohibited": "pointer-null-arithmetic",
    "At program exit the register R0 has value (0x7b; 0x0) should have been 0 or 1": "return-value",
    # Offsets decide.
    "invalid write to stack R10 off=-520 size=8": "stack-out-of-bounds",
    "invalid write to stack R10 off=-4 size=8": "stack-out-of-bounds",
    "invalid read from stack R10 off=-32 size=8": "stack-uninitialized",
    "invalid read from stack R10 off=-520 size=8": "stack-out-of-bounds",
    "invalid indirect access to stack R2 off=-64 size=65": "stack-out-of-bounds",
    "invalid read from stack off -8+0 size 8": "stack-uninitialized",
    "invalid func unknown#-2147483648": "unknown-helper",
    "R1 has type scalar, expected PTR_TO_INSN": "jump-table",
    "no jump tables found for subprog starting at 7": "jump-table",
    "jump table for insn 4 points outside of the subprog [0,7]": "jump-table",
    "Invalid read of 4 bytes from insn_array": "jump-table",
    "Failed to properly initialize insn array": "jump-table",
    "R2 points to outside of jump table: [0,9] max_entries 4": "jump-table",
    "indirect jump out of range from insn 3 to 9": "jump-table",
    "No jump table was found for the subprogram that starts at instruction 0.": "jump-table",
    "The jump table for instruction 4 points outside subprogram range [0,7).": "jump-table",
    "R3 points to insn_array map which cannot be used as const string": "argument-constant",
    "callback function not allowed for map": "map-helper-mismatch",
    "R1 is bpf_insn_array invalid negative access: off=-8": "map-pointer-access",
    "struct bpf_map doesn't have field at offset 36": "map-pointer-access",
    "only read from bpf_insn_array is supported": "map-pointer-access",
}


@pytest.mark.parametrize(("message", "id_"), MESSAGES.items())
def test_message_stands_for_the_id(message: str, id_: str) -> None:
    assert id_of_message(message) == id_
