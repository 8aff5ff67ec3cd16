from pathlib import Path

from certbench.external.instances import Instances, identify

A, B = ("mnist", "a/n.onnx", "p.vnnlib"), ("mnist", "b/n.onnx", "p.vnnlib")
LIST = Instances(Path("instances.csv"), {A[1:]: 1.0, B[1:]: 1.0, ("onnx/m.onnx", "q.vnnlib"): 1.0}, "mnist")


def test_a_name_means_the_instance_whose_paths_end_alike() -> None:
    names = {
        ("mnist", "bench/mnist/a/n.onnx", "bench/mnist/p.vnnlib"): (A,),
        ("", "b/n.onnx", "p.vnnlib"): (B,),
        ("mnist", "n.onnx", "p.vnnlib"): (A, B),
        ("mnist", "c/n.onnx", "p.vnnlib"): (("mnist", "c/n.onnx", "p.vnnlib"),),  # in no list
        ("cifar", "m.onnx", "q.vnnlib"): (("cifar", "m.onnx", "q.vnnlib"),),  # of another category
        ("mnist", "/x/onnx/m.onnx", "/y/q.vnnlib"): (("mnist", "onnx/m.onnx", "q.vnnlib"),),
        ("mnist", "nets/m.onnx", "q.vnnlib"): (("mnist", "nets/m.onnx", "q.vnnlib"),),
    }
    assert identify(names, [LIST]) == names


def test_without_a_list_the_longest_name_is_meant() -> None:
    short, long, other = ("", "n.onnx", "p.vnnlib"), A, ("mnist", "n.onnx", "p.vnnlib")
    assert identify([short, long, other]) == {short: (A,), long: (A,), other: (A,)}
    assert identify([short, A, B]) == {short: (A, B), A: (A,), B: (B,)}
    both = Instances(Path("instances.csv"), {("n.onnx", "p.vnnlib"): 1.0, A[1:]: 1.0})
    assert identify([A, other], [both]) == {A: (A,), other: (other, A)}
