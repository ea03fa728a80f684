"""The files that people write. ``load_pipeline`` reads ``deepseek.yaml``; every problem comes with its line."""

from deepseek_ops.core.config.alerts import (
    Action,
    Alert,
    CheckpointAction,
    EmailAction,
    HttpAction,
    LowerLearningRateAction,
    PageAction,
    RewindAction,
    SkipBatchesAction,
    SlackAction,
    StopTrainingAction,
)
from deepseek_ops.core.config.data import Data, PrepareLimits, Split
from deepseek_ops.core.config.data_checks import ContaminationCheck, DataChecks, EvaluationSet, FieldRule
from deepseek_ops.core.config.delivery import (
    DatasetSelection,
    Deployment,
    Experiment,
    LocalDestination,
    ReleaseRules,
    S3Destination,
    Stage,
    Validation,
    Variant,
)
from deepseek_ops.core.config.globs import matches_paths, matches_ref
from deepseek_ops.core.config.hyperparameter import Hyperparameter
from deepseek_ops.core.config.overrides import parse_override
from deepseek_ops.core.config.pipeline import PipelineFile
from deepseek_ops.core.config.reading import InvalidPipelineError, load_pipeline, read_file
from deepseek_ops.core.config.schema import pipeline_schema
from deepseek_ops.core.config.setup import Jobs, Setup
from deepseek_ops.core.config.training import Budget, ModelReference, Sweep, Training
from deepseek_ops.core.config.triggers import (
    Changes,
    DataArrivalTrigger,
    GitPushTrigger,
    GitTagTrigger,
    ScheduleTrigger,
    Trigger,
)

__all__ = [
    "Action",
    "Alert",
    "Budget",
    "Changes",
    "CheckpointAction",
    "ContaminationCheck",
    "Data",
    "DataArrivalTrigger",
    "DataChecks",
    "DatasetSelection",
    "Deployment",
    "EmailAction",
    "EvaluationSet",
    "Experiment",
    "FieldRule",
    "GitPushTrigger",
    "GitTagTrigger",
    "HttpAction",
    "Hyperparameter",
    "InvalidPipelineError",
    "Jobs",
    "LocalDestination",
    "LowerLearningRateAction",
    "ModelReference",
    "PageAction",
    "PipelineFile",
    "PrepareLimits",
    "ReleaseRules",
    "RewindAction",
    "S3Destination",
    "ScheduleTrigger",
    "Setup",
    "SkipBatchesAction",
    "SlackAction",
    "Split",
    "Stage",
    "StopTrainingAction",
    "Sweep",
    "Training",
    "Trigger",
    "Validation",
    "Variant",
    "load_pipeline",
    "matches_paths",
    "matches_ref",
    "parse_override",
    "pipeline_schema",
    "read_file",
]
