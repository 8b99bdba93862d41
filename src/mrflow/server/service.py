"""What the routes and the page share: the scheduler, the limits, what is kept, and the names of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mrflow.drafts import Draft
from mrflow.known_models import full_name
from mrflow.lanes import check_lanes, copy_lane
from mrflow.model import Model
from mrflow.server.errors import ApiError
from mrflow.server.keys import Keys, Sessions
from mrflow.server.metrics import Metrics
from mrflow.server.scheduler import Scheduler
from mrflow.server.settings import Settings
from mrflow.server.store import Store, StoredFile
from mrflow.server.tasks import Tasks


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is kept for a while."""

    files: Store[StoredFile]
    drafts: Store[Draft]

    @classmethod
    def of(cls, settings: Settings) -> Kept:
        """Return empty stores of this process."""
        return cls(
            files=Store(settings.keep_seconds, settings.keep_bytes, ""),
            drafts=Store(settings.keep_seconds, settings.keep_bytes, "draft_"),
        )


@dataclass(frozen=True, kw_only=True)
class Service(Kept):
    """One server's parts.

    names: under which the model can be asked for, its own first. tasks: None where there are several processes.
    """

    scheduler: Scheduler
    settings: Settings
    metrics: Metrics
    keys: Keys
    sessions: Sessions
    names: tuple[str, ...]
    tasks: Tasks | None

    @property
    def patch(self) -> int:
        """Pixels of a side of a patch, which counts as one image token."""
        model = self.scheduler.model
        return model.backbone.multiple(model.pipe)

    def check_model(self, name: str | None) -> None:
        """Raise an ApiError unless the model is known by this name; None is the only one there is."""
        if name is not None and name not in self.names and full_name(name) not in self.names:
            text = f"The model {name[:80]!r} is not served here; GET /v1/models says which is."
            raise ApiError(404, text, param="model", code="model_not_found")

    def keep_draft(self, draft: Draft) -> str:
        """Keep a draft to be finished and return its id; its text is encoded again then, which is cheap."""
        latents = None if draft.latents is None else draft.latents.cpu()
        kept = Draft(draft.pixels.cpu(), draft.base_recipe, latents=latents)
        return self.drafts.put(kept, kept.pixels.nbytes + (0 if latents is None else latents.nbytes))

    def kept_drafts(self, names: Sequence[str]) -> list[Draft]:
        """Return kept drafts; raises an ApiError for one that is not there (any more)."""
        found = [self.drafts.get(name) for name in names]
        drafts = [draft for draft in found if draft is not None]
        if len(drafts) != len(names):
            missing, seconds = names[found.index(None)], self.settings.keep_seconds
            text = f"There is no draft {missing[:60]!r}; drafts are kept for {seconds:g} seconds."
            raise ApiError(404, text, param="drafts", code="draft_not_found")
        return drafts


def make_service(
    models: Sequence[Model], settings: Settings, keys: Keys, aliases: Sequence[str] = (), kept: Kept | None = None
) -> Service:
    """Return the parts around models that are the same but for their devices; nothing runs yet.

    kept: stores that are shared with others.
    Raises RequestError where a model can't have as many lanes as the settings say.
    """
    wanted = settings.lanes or (None if len(models) == 1 else 1)
    for model in models:
        model.upscaler.ready()  # what is missing is said before anybody asks
    lanes = [lane for model in models for lane in _lanes(model, check_lanes(model, wanted))]
    metrics, tasks = Metrics([lane.device for lane in lanes]), Tasks(settings) if kept is None else None
    kept = kept or Kept.of(settings)
    return Service(
        scheduler=Scheduler(lanes, settings, metrics),
        settings=settings,
        metrics=metrics,
        files=kept.files,
        drafts=kept.drafts,
        keys=keys,
        sessions=Sessions(),
        tasks=tasks,
        names=tuple(dict.fromkeys((lanes[0].name, *aliases))),
    )


def _lanes(model: Model, count: int) -> list[Model]:
    """Return copies of the model under a name that tells no folder of this machine, for it gets into recipes."""
    path = Path(model.name)
    public = replace(model, name=path.name) if path.is_absolute() or path.is_dir() else model
    return [public, *(copy_lane(public) for _ in range(count - 1))]
