# SPDX-License-Identifier: Apache-2.0
"""Parameters of the nodes, declared from one option struct each.

A struct is a frozen dataclass whose fields are made by `option`, so a parameter's default,
description and range stand in one place, and the node reads plain attributes::

    @dataclass(frozen=True)
    class WebOptions:
        port: int = option(8080, 'TCP port of the page', minimum=1, maximum=65535)

    options = declare_options(node, WebOptions)
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, TypeVar, get_type_hints

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterUninitializedException,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

# Parameters that rclpy declares or reads by itself.
BUILT_IN_PREFIXES = ('qos_overrides.', 'use_sim_time', 'start_type_description_service')
INT64_MAX = 2**63 - 1
FLOAT_MAX = 1.7976931348623157e308

Options = TypeVar('Options')


class OptionError(ValueError):
    """A parameter's value is not usable; the message names it and what is accepted."""


def option(default: Any, description: str, *, minimum: float | None = None,
           maximum: float | None = None, choices: tuple[str, ...] = ()) -> Any:
    """Make a field of an option struct.

    Args:
        default: value if the YAML file gives none; also fixes the parameter's type.
        description: one sentence with the unit, shown by ``ros2 param describe``.
        minimum: smallest accepted number.
        maximum: largest accepted number.
        choices: the accepted strings; empty if any will do.
    """
    metadata = {'description': description, 'minimum': minimum, 'maximum': maximum,
                'choices': choices}
    return dataclasses.field(default=default, metadata=metadata)


def descriptor_of(field: dataclasses.Field[Any], kind: type) -> ParameterDescriptor:
    """Describe a field the way ROS shows parameters (description, range, constraints)."""
    low, high = field.metadata['minimum'], field.metadata['maximum']
    descriptor = ParameterDescriptor(description=field.metadata['description'], read_only=True)
    if field.metadata['choices']:
        descriptor.additional_constraints = 'one of: ' + ', '.join(field.metadata['choices'])
    if low is None and high is None:
        return descriptor
    if kind is int:
        descriptor.integer_range = [IntegerRange(
            from_value=-INT64_MAX if low is None else int(low),
            to_value=INT64_MAX if high is None else int(high), step=0)]
    else:
        descriptor.floating_point_range = [FloatingPointRange(
            from_value=-FLOAT_MAX if low is None else float(low),
            to_value=FLOAT_MAX if high is None else float(high), step=0.0)]
    return descriptor


def declare_options(node: Node, struct: type[Options]) -> Options:
    """Declare a struct's fields as parameters of ``node`` and read their values.

    Whole numbers are accepted for parameters that are fractions, as YAML writers expect.

    Raises:
        OptionError: if a value has the wrong type, is out of range or is not among the choices.
    """
    values = {}
    hints = get_type_hints(struct)
    for field in dataclasses.fields(struct):  # type: ignore[arg-type]
        kind, default = hints[field.name], field.default
        given = node._parameter_overrides.get(field.name)
        if kind is float and given is not None and given.type_ == Parameter.Type.INTEGER:
            node._parameter_overrides[field.name] = Parameter(
                field.name, Parameter.Type.DOUBLE, float(given.value))
        try:
            parameter = node.declare_parameter(field.name, default, descriptor_of(field, kind))
        except (InvalidParameterTypeException, InvalidParameterValueException,
                ParameterUninitializedException) as error:
            raise OptionError(_complaint(field, kind, given, default)) from error
        value = parameter.value
        choices = field.metadata['choices']
        if choices and value not in choices:
            raise OptionError(_complaint(field, kind, given, default))
        values[field.name] = value
    return struct(**values)


def _complaint(field: dataclasses.Field[Any], kind: type, given: Parameter | None,
               default: Any) -> str:
    low, high, choices = (field.metadata[key] for key in ('minimum', 'maximum', 'choices'))
    accepted = getattr(kind, '__name__', str(kind))
    if choices:
        accepted = 'one of ' + ', '.join(repr(choice) for choice in choices)
    elif low is not None or high is not None:
        accepted += f' from {"any" if low is None else low} to {"any" if high is None else high}'
    value = None if given is None else given.value
    return (f'parameter {field.name} is {value!r}, but must be {accepted} '
            f'({field.metadata["description"]}): correct it in the parameter file, or leave it '
            f'out for the default {default!r}')


def unknown_parameters(node: Node, known: list[str]) -> list[str]:
    """Say which parameters were given to ``node`` that it does not have.

    ROS ignores them silently, so that a misspelt name is a setting that never takes effect.

    Args:
        node: the node, after its parameters were declared.
        known: names of its own parameters.

    Returns:
        One sentence for each unknown parameter, with the closest known name.
    """
    complaints = []
    for name in sorted(node._parameter_overrides):
        if name in known or name.startswith(BUILT_IN_PREFIXES):
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = (f'did you mean {close[0]}?' if close
                else 'it has: ' + ', '.join(sorted(known)))
        complaints.append(f'unknown parameter {name} is ignored; {hint}')
    return complaints
