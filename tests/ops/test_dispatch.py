"""Which implementation the environment asks for."""

from __future__ import annotations

import pytest

from m2f_cli.errors import ConfigError
from m2f_cli.ops.dispatch import OPERATORS


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch):
    for name in ("M2F_OPS", *(each.older_variable for each in OPERATORS.values())):
        monkeypatch.delenv(name, raising=False)


def overrides() -> dict[str, str | None]:
    return {name: each.override() for name, each in OPERATORS.items()}


def test_nothing_is_asked_for_by_default():
    assert set(overrides().values()) == {None}


def test_reference_is_that_of_every_operator(monkeypatch):
    monkeypatch.setenv("M2F_OPS", "reference")
    monkeypatch.setenv("M2F_LINEAR", "fused")
    assert overrides() == {name: each.names[0] for name, each in OPERATORS.items()}


def test_single_operators_and_later_entries_win(monkeypatch):
    monkeypatch.setenv("M2F_OPS", "reference, linear:fused,attention:auto")
    assert OPERATORS["linear"].override() == "fused" and OPERATORS["attention"].override() is None
    assert OPERATORS["conv"].override() == "plain"


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_older_variable_counts_where_the_new_one_is_silent(operator, monkeypatch):
    chosen = OPERATORS[operator]
    monkeypatch.setenv(chosen.older_variable, chosen.names[1])
    assert {name for name, found in overrides().items() if found} == {operator}
    assert chosen.override() == chosen.names[1]
    monkeypatch.setenv("M2F_OPS", f"{operator}:{chosen.names[0]}")
    assert chosen.override() == chosen.names[0]


@pytest.mark.parametrize("value", ["fast", "lineer:blas", "linear", ":blas"])
def test_a_wrong_operator_is_refused_with_the_list(value, monkeypatch):
    monkeypatch.setenv("M2F_OPS", value)
    with pytest.raises(ConfigError, match="names no operator.*deformable_attention, linear, .*group_norm"):
        OPERATORS["conv"].override()


@pytest.mark.parametrize(("variable", "value"), [("M2F_OPS", "linear:fast"), ("M2F_LINEAR", "fast")])
def test_a_wrong_implementation_is_refused_with_the_list(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"{variable} asks for 'fast'.*linear.*blas, fused, or auto"):
        OPERATORS["linear"].override()
