"""The settings of a run, its data, its objective and a probe: typed, with defaults and bounds."""

from jepa_jax.config.augmentation import AugmentationConfig, RandAugmentConfig
from jepa_jax.config.clustering import DinoConfig, MsnConfig, SwavConfig
from jepa_jax.config.data import DataConfig, LowShotConfig, SubsetConfig
from jepa_jax.config.dense import DenseConfig
from jepa_jax.config.ema import EmaConfig
from jepa_jax.config.fine_tune import FineTuneConfig, resolve_fine_tune
from jepa_jax.config.invariance import ByolConfig, LejepaConfig, SimclrConfig, VicregConfig
from jepa_jax.config.objective import ObjectiveConfig, SupervisedConfig
from jepa_jax.config.prediction import (
    Data2vecConfig,
    IJepaConfig,
    MaeConfig,
    MaskConfig,
    PredictorConfig,
    SigregConfig,
    VarianceCovarianceConfig,
)
from jepa_jax.config.probe import (
    HeadsConfig,
    KnnConfig,
    LinearConfig,
    ProbeConfig,
    probe_data,
    resolve_probe,
)
from jepa_jax.config.run import (
    CheckpointConfig,
    ComputeConfig,
    Config,
    InitConfig,
    LoggingConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    ProfileConfig,
    resolve,
)
from jepa_jax.config.schema import differences, from_mapping, to_dict

__all__ = [
    "AugmentationConfig",
    "ByolConfig",
    "CheckpointConfig",
    "ComputeConfig",
    "Config",
    "Data2vecConfig",
    "DataConfig",
    "DenseConfig",
    "DinoConfig",
    "EmaConfig",
    "FineTuneConfig",
    "HeadsConfig",
    "IJepaConfig",
    "InitConfig",
    "KnnConfig",
    "LejepaConfig",
    "LinearConfig",
    "LoggingConfig",
    "LowShotConfig",
    "MaeConfig",
    "MaskConfig",
    "MeshConfig",
    "ModelConfig",
    "MsnConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PredictorConfig",
    "ProbeConfig",
    "ProfileConfig",
    "RandAugmentConfig",
    "SigregConfig",
    "SimclrConfig",
    "SubsetConfig",
    "SupervisedConfig",
    "SwavConfig",
    "VarianceCovarianceConfig",
    "VicregConfig",
    "differences",
    "from_mapping",
    "probe_data",
    "resolve",
    "resolve_fine_tune",
    "resolve_probe",
    "to_dict",
]
