"""Programs whose code Python cannot read."""

from torch import Tensor, nn


class Program(nn.Module):
    """A compiled module, known by the digest of the file that it came from and by its tensors.

    Attributes:
        compiled: the module.
        digest: SHA-256 of the file, in hexadecimal digits.
    """

    def __init__(self, compiled: nn.Module, digest: str) -> None:
        """Store the module and the digest."""
        super().__init__()
        self.compiled, self.digest = compiled, digest
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the compiled module computes."""
        return self.compiled(x)  # type: ignore[no-any-return]
