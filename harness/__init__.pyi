"""What study files and notebooks import from here; each name is loaded when it is first used."""

from harness.average import average_networks as average_networks
from harness.bundle import merge_bundles as merge_bundles
from harness.bundle import pack_study as pack_study
from harness.cache import CacheContents as CacheContents
from harness.cache import empty_cache as empty_cache
from harness.cache import list_cache as list_cache
from harness.core import strategies as strategies
from harness.core.errors import UserError as UserError
from harness.core.spec import SHIFTS as SHIFTS
from harness.core.spec import TrialSpec as TrialSpec
from harness.core.study import Arms as Arms
from harness.core.study import Study as Study
from harness.core.study_file import load_study
from harness.deploy.averages import RepeatAverages as RepeatAverages
from harness.deploy.export import Exported as Exported
from harness.deploy.prediction import Prediction as Prediction
from harness.export import export_model as export_model
from harness.lr_find import find_lr as find_lr
from harness.new import look_at as look_at
from harness.new import propose_study as propose_study
from harness.predict import predict_images as predict_images
from harness.pretrain import Pretrained as Pretrained
from harness.pretrain import pretrain_sources as pretrain_sources
from harness.rank import rank_sources as rank_sources
from harness.replay import replay_run as replay_run
from harness.search.bundles import Packed as Packed
from harness.search.merge import Merged as Merged
from harness.search.options import StudyOptions as StudyOptions
from harness.similarity.__main__ import PairMeasured as PairMeasured
from harness.similarity.__main__ import measure_similarity as measure_similarity
from harness.similarity.sources.ranking import Ranking as Ranking
from harness.similarity.sources.spec import SourceSpec as SourceSpec
from harness.status import study_status as study_status
from harness.study import dry_run as dry_run
from harness.study import run_study as run_study
from harness.sync import sync_study as sync_study
from harness.tracking.replay import Replayed as Replayed
from harness.tracking.results import StudyResult as StudyResult
from harness.tracking.results import load_result as load_result
from harness.training.lr_range import LrRange as LrRange

__all__: list[str]
load_study_file = load_study
