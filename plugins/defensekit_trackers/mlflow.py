"""Runs as runs of MLflow."""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr

from defensekit.api import DefenseKitError, Field, Observer, UsageError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

AT_ONCE = 100  # parameters in one request, MLflow's limit
LONGEST = 500  # characters of a parameter that every store of MLflow takes


class MLflow(Observer):
    """Records every run in MLflow while it goes on: recipe, axes, seconds of each stage, metrics, the result.

    A store that can't be reached stops a run, or a study, before it starts. One that is lost later stops nothing: a
    warning says so, and the run goes on without it, since its result is in the workspace anyway. A run that was stopped
    or killed stays ``RUNNING`` in MLflow.
    """

    tracking_uri: str | None = Field(None, description="MLflow's store or server (as MLFLOW_TRACKING_URI says)")
    experiment: str = Field("defensekit", description="the experiment in MLflow; created if it does not exist")

    _axes: dict[str, Any] = PrivateAttr(default_factory=dict)
    _name: str | None = PrivateAttr(None)
    _client: Any = PrivateAttr(None)
    _run: str | None = PrivateAttr(None)

    def for_run(self, name: str, axes: Mapping[str, Any]) -> "MLflow":
        watcher = MLflow(tracking_uri=self.tracking_uri, experiment=self.experiment)
        watcher._name, watcher._axes = name, dict(axes)
        return watcher

    def study_started(self, runs: Sequence[str], slots: int) -> None:
        with self._reached():
            self._experiment()

    def run_started(self, recipe: Mapping[str, Any]) -> None:
        with self._reached():
            from mlflow.entities import Param

            experiment = self._experiment()
            created = self._client.create_run(experiment, run_name=self._name or str(recipe["name"]))
            self._run = created.info.run_id
            values = {**dict(_flat("", recipe)), **{f"axis.{axis}": value for axis, value in self._axes.items()}}
            params = [Param(_key(key), str(value)[:LONGEST]) for key, value in values.items()]
            for i in range(0, len(params), AT_ONCE):
                self._client.log_batch(self._run, params=params[i : i + AT_ONCE])

    def stage_finished(self, title: str, seconds: float, reused: bool) -> None:
        if not reused:
            self._tell(lambda client, run: client.log_metric(run, _key(f"seconds/{title}"), seconds))

    def stage_failed(self, title: str, error: str) -> None:
        self._tell(lambda client, run: client.set_tag(run, "failed stage", title))

    def run_finished(self, result: Mapping[str, Any]) -> None:
        def write(client: "MlflowClient", run: str) -> None:
            client.log_batch(run, metrics=list(_metrics(result)))
            client.set_tag(run, "oracle", ", ".join(result["oracle"]) or "none")
            client.log_dict(run, dict(result), "result.json")
            client.set_terminated(run, "FINISHED")

        self._tell(write)

    def run_failed(self, error: str) -> None:
        def write(client: "MlflowClient", run: str) -> None:
            client.set_tag(run, "error", error[:LONGEST])
            client.set_terminated(run, "FAILED")

        self._tell(write)

    def _experiment(self) -> str:
        """Connect to MLflow; returns the id of the experiment."""
        from mlflow import MlflowClient

        self._client = MlflowClient(self.tracking_uri)
        existing = self._client.get_experiment_by_name(self.experiment)
        return str(existing.experiment_id if existing else self._client.create_experiment(self.experiment))

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn errors into messages where MLflow is not installed or can't be reached."""
        try:
            yield
        except ImportError as error:
            raise UsageError("the observer mlflow needs MLflow: pip install 'defensekit[mlflow]'") from error
        except Exception as error:
            raise DefenseKitError(
                f"the observer mlflow: {self.tracking_uri or 'the default store'}: {error}"
            ) from error

    def _tell(self, do: "Callable[[MlflowClient, str], object]") -> None:
        """Record something; if that fails, warn once and record no more of this run."""
        if self._run is None:
            return
        try:
            do(self._client, self._run)
        except Exception as error:  # of the network, of MLflow, of the disk behind it
            self._run = None
            warnings.warn(
                f"the connection to MLflow was lost, and this run is no longer recorded: {error}", stacklevel=2
            )


def _metrics(result: Mapping[str, Any]) -> "Iterable[Metric]":
    """The metrics of every model, and those of every trial with the number of the trial as step."""
    from time import time

    from mlflow.entities import Metric

    now = int(time() * 1000)
    for name, model in result["models"].items():
        for metric, measured in model["metrics"].items():
            yield Metric(_key(f"{name}/{metric}"), measured["value"], now, 0)
    for step, trial in enumerate(result["curve"]):
        yield Metric("trial/value", trial["value"], now, step)
        yield Metric("trial/dev-acc", trial["dev_accuracy"], now, step)
        for metric, measured in trial["metrics"].items():
            yield Metric(_key(f"trial/{metric}"), measured["value"], now, step)
    yield Metric("run_seconds", result["seconds"], now, 0)
    for name, metric in result["metrics"].items():
        if metric["floor"] is not None:
            yield Metric(f"{name}_floor", metric["floor"], now, 0)


def _flat(path: str, value: Any) -> Iterable[tuple[str, Any]]:
    """Plain data as dotted paths and values."""
    if isinstance(value, Mapping | list) and value:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _flat(f"{path}.{key}" if path else str(key), inner)
    else:
        yield path, value


def _key(text: str) -> str:
    """A name that MLflow accepts."""
    return re.sub(r"[^\w\-./ ]", "_", text)[:250]
