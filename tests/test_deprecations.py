"""A deprecation of a library that this package stands on fails the tests before it becomes an error there."""

from __future__ import annotations

import warnings

import pytest
import transformers

LIBRARIES = ["transformers", "accelerate", "datasets", "huggingface_hub"]


def deprecated(module: str, category: str, stacklevel: int = 1):
    """A function of a module of that name, which warns of itself or, with a stacklevel of 2, of its caller."""
    names = {"__name__": module, "warnings": warnings}
    exec(f"def old(text='old() will go'): warnings.warn(text, {category}, stacklevel={stacklevel})", names)
    return names["old"]


@pytest.mark.parametrize("category", ["FutureWarning", "DeprecationWarning"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_deprecation_inside_a_library_is_an_error(library, category):
    for name in (library, f"{library}.some.part"):
        with pytest.raises(Warning, match="will go"):
            deprecated(name, category)()


@pytest.mark.parametrize("category", ["FutureWarning", "DeprecationWarning"])
@pytest.mark.parametrize(
    "caller", ["ec_hf.training.trainer", "helpers.models", "test_trainer", "train_original", "__main__"]
)
def test_a_deprecation_that_a_library_lays_at_its_callers_door_is_an_error(caller, category):
    names = {"__name__": caller, "old": deprecated("transformers.some.part", category, stacklevel=2)}
    exec("def call(): old()", names)
    with pytest.raises(Warning, match="will go"):
        names["call"]()


def test_a_deprecation_that_names_a_library_is_an_error_wherever_it_is_raised():
    old = deprecated("elsewhere", "FutureWarning")
    with pytest.raises(FutureWarning):
        old("\nThis class moves: take it from transformers.models instead.")
    with pytest.warns(FutureWarning):
        old("This class of another library moves.")


def test_a_deprecation_that_transformers_logs_is_an_error():
    logger = transformers.logging.get_logger("transformers.models.vit")
    with pytest.raises(FutureWarning, match="is deprecated"):
        logger.warning_once("`some_argument` is deprecated and will go in v6")
    logger.warning("Some weights were newly initialised")


def test_an_argument_that_transformers_has_deprecated_is_refused():
    with pytest.raises(FutureWarning, match="torch_dtype"):
        transformers.ViTConfig().torch_dtype  # noqa: B018
