"""The map between published names and the reference toolkit's is total and its own inverse."""

from gm.weights.names import from_reference, to_reference
from tests import reference


def test_to_reference_gives_exactly_the_reference_checkpoint():
    published, wanted = reference.published(), reference.reference_ckpt()
    assert {to_reference(name): shape for name, shape in published.items()} == wanted
    assert len(wanted) == len(published) == 2446


def test_both_directions_compose_to_the_identity():
    for name in reference.published():
        assert from_reference(to_reference(name)) == name
    for name in reference.reference_ckpt():
        assert to_reference(from_reference(name)) == name


def test_published_names_stay_as_they_are():
    assert all(from_reference(name) == name for name in reference.published())


def test_examples():
    assert to_reference("a.norm.weight") == "a.norm.gamma"
    assert to_reference("model.diffusion_model.out.0.bias") == "model.diffusion_model.out.0.beta"
    assert to_reference("x.attn1.to_out.0.weight") == "x.attn1.to_out.0.weight"
    assert to_reference("x.skip_connection.weight") == "x.skip_connection.weight"
