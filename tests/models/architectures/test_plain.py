import pytest

from certbench.models.architectures import plain
from tests.support.architectures import draw, network


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 4), (3, 13, 9)])
@pytest.mark.parametrize("name", plain.ARCHITECTURES)
def test_architectures_take_images_of_any_size(name: str, shape: tuple[int, ...]) -> None:
    assert network(name, shape)(draw(5, *shape)).shape == (5, 10)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_dense_architectures_take_vectors(name: str) -> None:
    assert network(name, (6,))(draw(5, 6)).shape == (5, 10)
