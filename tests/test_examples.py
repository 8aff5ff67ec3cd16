import importlib.util
from pathlib import Path


def test_the_curse_of_dimension_shows() -> None:
    """At a fixed sigma the Linf radius falls with the side, though the classifier sees less noise."""
    spec = importlib.util.spec_from_file_location(
        "curse", Path(__file__).parents[1] / "examples" / "curse_of_dimension.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines: list[str] = []
    module.main(images=4, draws=500, sides=(1, 2), say=lines.append)
    table = {tuple(line.split()[:3]): [float(number) for number in line.split()[3:]] for line in lines[1:]}
    assert len(table) == 9
    for noise, fall in (("gaussian", 0.75), ("laplace", 0.75), ("uniform", 0.4)):
        small, large, louder = (table[noise, d, s] for d, s in (("64", "0.25"), ("256", "0.25"), ("256", "0.50")))
        assert 0 < large[2] < fall * small[2]
        assert louder[2] > large[2]
        assert large[0] > 0.95 * small[0]
