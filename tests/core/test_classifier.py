import pytest
from torch import nn

from certbench import Classifier, ConfigError


def test_a_module_in_training_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="training mode"):
        Classifier(nn.Sequential(nn.Linear(9, 3), nn.Dropout()), (9,), 3)
