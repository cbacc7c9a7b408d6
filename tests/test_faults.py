"""A slice of experiments/faults, of which `make faults` runs all."""

from experiments.faults import refusals


def test_every_odd_value_of_every_field_is_refused_by_name_or_legal():
    refused, faults = refusals.check_fields()
    assert faults == []
    assert refused > 1500


def test_fields_drawn_together_are_refused_in_a_line_or_can_be_traced():
    refused, traced, faults = refusals.check_combinations(12, seed=1)
    assert faults == []
    assert refused + traced == 12
    assert refused and traced
