"""Certificates behind an embedding: the parts make up the module, and what needs the tokens is refused."""

import pytest
import torch
from torch import Tensor, nn

import certbench
from certbench import L2, Classifier, ConfigError, UnsupportedError
from certbench.networks.embedding import embedded

TOKENS = torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(0))


class Reader(nn.Module):
    """A classifier of five tokens; with `mask`, tokens 0 do not count."""

    def __init__(self, mask: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(11, 6), nn.Embedding(5, 6)
        self.inner, self.norm, self.last, self.mask = nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 3), mask

    def forward(self, tokens: Tensor) -> Tensor:
        z = self.embed(tokens) + self.places(torch.arange(tokens.shape[1]))
        z = self.norm(torch.tanh(self.inner(z)))
        if self.mask:
            z = z * (tokens != 0).unsqueeze(-1)
        return self.last(z.mean(dim=1))  # type: ignore[no-any-return]


def test_what_follows_an_embedding_is_certified_in_the_space_of_its_vectors() -> None:
    module = Reader().eval()
    embedding, rest = embedded(module, "embed", TOKENS)
    x = embedding(TOKENS).detach()
    torch.testing.assert_close(rest(x), module(TOKENS))
    certificate = certbench.certify("crown", Classifier(rest, tuple(x.shape[1:]), 3), x, L2, attack=True)
    assert (certificate.radius > 0).all()
    assert torch.equal(certificate.prediction, module(TOKENS).argmax(dim=1))


def test_tokens_and_what_needs_them_are_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"the vectors that it gives, with .*embedding.embedded"):
        Classifier(Reader().eval(), (5,), 3)
    with pytest.raises(UnsupportedError, match="depends on its tokens otherwise than through 'embed'"):
        embedded(Reader(mask=True).eval(), "embed", TOKENS)
    with pytest.raises(UnsupportedError, match="known: embed, places"):
        embedded(Reader().eval(), "inner", TOKENS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_normalisation_without_eps_has_that_of_the_modules_own_precision(dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4), nn.Linear(4, 2)).to(dtype).eval()
    with torch.no_grad():
        for parameter in module[0].parameters():
            parameter.mul_(1e-4)  # so that eps counts
    classifier = Classifier(module, (3,), 2)
    x = torch.rand(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(classifier.double()(x), classifier(x).double(), rtol=1e-4, atol=1e-6)
    assert module[1].eps is None
    certificate = certbench.certify("crown", classifier, x, L2, attack=True)
    assert (certificate.radius > 0).all()
