"""What goes together is known before any work; what does not is refused with what does."""

import pytest

from tunegate.contracts.errors import SettingsError
from tunegate.contracts.schemes import ALGORITHMS, AWQ, BACKENDS, GPTQ, LLMCOMPRESSOR, RTN, SCHEMES, algorithm_of
from tunegate.quantize.backends import BACKENDS as IMPLEMENTED
from tunegate.quantize.settings import QuantizeSettings


def test_every_backend_of_the_table_is_implemented_and_makes_something() -> None:
    assert set(BACKENDS) == set(IMPLEMENTED)
    for name, scheme in SCHEMES.items():
        assert scheme.algorithms, name
        for backend, algorithms in scheme.algorithms.items():
            assert backend in BACKENDS and algorithms and set(algorithms) <= set(ALGORITHMS)
    assert {backend for scheme in SCHEMES.values() for backend in scheme.algorithms} == set(BACKENDS)


@pytest.mark.parametrize(
    ("scheme", "algorithm", "calibrated"),
    [("W4A16", GPTQ, True), ("W4A16_ASYM", AWQ, True), ("W8A8", GPTQ, True), ("FP8_DYNAMIC", RTN, False),
     ("FP8", RTN, True)],
)  # fmt: skip
def test_a_scheme_alone_says_how_it_is_made_and_whether_rows_are_needed(scheme, algorithm, calibrated) -> None:
    settings = QuantizeSettings(scheme=scheme)
    assert (settings.made_by, settings.calibrated) == (algorithm, calibrated)


def test_an_algorithm_that_does_not_make_the_scheme_is_refused_with_those_that_do() -> None:
    with pytest.raises(SettingsError, match="does not make FP8 by awq") as caught:
        QuantizeSettings(scheme="FP8", algorithm=AWQ)
    assert "llmcompressor: rtn" in caught.value.expected
    assert "llmcompressor makes W4A16 by gptq or awq" in caught.value.items
    assert algorithm_of("W4A16", backend=LLMCOMPRESSOR, asked=AWQ) == AWQ


def test_a_group_size_for_a_scheme_without_groups_is_refused() -> None:
    with pytest.raises(SettingsError, match="no meaning for W8A8"):
        QuantizeSettings(scheme="W8A8", group_size=64)
    assert QuantizeSettings(scheme="W4A16_ASYM", group_size=64).group_size == 64


@pytest.mark.parametrize(
    ("given", "reader"),
    [({"scheme": "FP8_DYNAMIC", "dampening_frac": 0.1}, GPTQ), ({"n_grid": 5}, AWQ)],
)
def test_a_setting_that_the_algorithm_never_reads_is_refused(given, reader) -> None:
    with pytest.raises(SettingsError, match="no meaning") as caught:
        QuantizeSettings(**given)
    assert reader in caught.value.expected
    assert QuantizeSettings(algorithm=AWQ, n_grid=5).n_grid == 5
    assert QuantizeSettings(dampening_frac=0.1).dampening_frac == 0.1
