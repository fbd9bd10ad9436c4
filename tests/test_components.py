import pytest

from utils.cli import UserError
from utils.runs.components import Component


@pytest.mark.parametrize("component, text", [
    (Component("attn", 22, 10), "22.10"), (Component("mlp", 5), "mlp 5"), (Component("conv", 2), "conv 2"),
    (Component("embed"), "embedding"), (Component("attn", 3), "attn 3")])
def test_a_component_is_printed_and_read_back(component, text):
    assert str(component) == text
    assert Component.parse(text) == component
    assert Component.from_dict(component.to_dict()) == component


@pytest.mark.parametrize("text", ("", "5", "5.3.1", "mlp", "mlp 5.3", "mlp -1", "embed", "head 5", "22. 1"))
def test_what_is_no_component_is_refused(text):
    with pytest.raises(UserError, match="is no component; write a head as layer.head"):
        Component.parse(text)
