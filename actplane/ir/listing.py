"""The bytecode IR as text, one operation a line."""

from __future__ import annotations

from actplane.ir import bytecode as bc


def _memory(base: bc.Value, offset_bytes: int, size: int, field: bc.KernelField | None = None) -> str:
    text = f"{base!r} + {offset_bytes}"
    if field is not None:
        text += f" + {field.struct}.{field.path}"
    return f"u{8 * size}[{text}]"


def _arguments(arguments: tuple[bc.Operand, ...]) -> str:
    return ", ".join(str(argument) for argument in arguments)


def print_operation(operation: bc.Operation) -> str:
    """Return one operation as text."""
    match operation:
        case bc.Move(dst, a, width):
            return f"{dst} = {a}" + (" (32)" if width == 32 else "")
        case bc.Binary(dst, operator, a, b, width):
            return f"{dst} = {a} {operator} {b}" + (" (32)" if width == 32 else "")
        case bc.ToBigEndian(dst, a, bits):
            return f"{dst} = be{bits} {a}"
        case bc.Load(dst, base, offset_bytes, size, field):
            return f"{dst} = {_memory(base, offset_bytes, size, field)}"
        case bc.Store(base, offset_bytes, value, size):
            return f"{_memory(base, offset_bytes, size)} = {value}"
        case bc.Atomic(dst, operator, base, offset_bytes, value, size):
            text = f"lock {_memory(base, offset_bytes, size)} {operator}= {value}"
            return text if dst is None else f"{dst} = fetch {text}"
        case bc.AddFieldOffset(dst, a, field):
            return f"{dst} = {a} + {field.struct}.{field.path}"
        case bc.EnumConstant(dst, enum, name):
            return f"{dst} = enum {enum}.{name}"
        case bc.MapAddress(dst, name):
            return f"{dst} = map {name}"
        case bc.MapValueAddress(dst, name, offset_bytes):
            return f"{dst} = value {name} + {offset_bytes}"
        case bc.FrameAddress(dst, slot):
            return f"{dst} = frame {slot.name}[{slot.size_bytes}]"
        case bc.FunctionReference(dst, function):
            return f"{dst} = function {function}"
        case bc.CallHelper(dst, helper, arguments):
            return (f"{dst} = " if dst else "") + f"{helper}({_arguments(arguments)})"
        case bc.CallFunction(dst, function, arguments):
            return (f"{dst} = " if dst else "") + f"call {function}({_arguments(arguments)})"


def _terminator(terminator: bc.Terminator) -> str:
    match terminator:
        case bc.Jump(block):
            return f"goto {block}"
        case bc.Branch(relation, a, b, then, otherwise, width):
            narrow = " (32)" if width == 32 else ""
            return f"if {a} {relation} {b}{narrow} goto {then} else {otherwise}"
        case bc.Return(value):
            return f"return {value}"


def print_function(function: bc.Function) -> str:
    """Return a function as text: its blocks, and in each its operations."""
    lines = [f"function {function.name}({', '.join(map(repr, function.parameters))})"]
    for block in function.blocks:
        lines.append(f"  {block.name}:")
        lines.extend("    " + print_operation(operation) for operation in block.operations)
        lines.append("    " + _terminator(block.terminator))
    return "\n".join(lines)
