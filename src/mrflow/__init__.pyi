"""The public names, and where each is at home: what type checkers read, and what __init__.py imports them by."""

from . import errors as errors
from .backbones import register_backbone as register_backbone
from .backbones.family import Backbone as Backbone
from .costs import Estimate as Estimate
from .costs import estimate as estimate
from .drafts import Draft as Draft
from .drafts import Drafts as Drafts
from .drafts import Result as Result
from .errors import MrFlowError as MrFlowError
from .files import load_image as load_image
from .files import read_recipe as read_recipe
from .files import save_image as save_image
from .pipeline import MrFlow as MrFlow
from .plan import PRESETS as PRESETS
from .plan import Defaults as Defaults
from .plan import Plan as Plan
from .plan import Preset as Preset
from .plan import get_plan as get_plan
from .progress import Progress as Progress
from .recipe import Recipe as Recipe
from .upscaler import Upscaler as Upscaler

__version__: str
