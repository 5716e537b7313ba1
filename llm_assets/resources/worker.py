"""Where text is generated: a process of the engine environment on this machine, or a pod with the engine's image.

Both run the same worker on the same job file, so an asset does not know which it got. The process boundary costs an
engine start per call; it gives the device memory back, and lets vLLM and the training stack pin what they like.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import dagster as dg
from pydantic import Field

from llm_assets.core import LLMAssetsError
from llm_assets.engine.device import device_memory_bytes
from llm_assets.engine.job import engine_python, worker_command, worker_environment, write_job
from llm_assets.engine.tasks import EngineConfig, GenerationConfig, GenerationTask

FLUSH_SECONDS = 300  # a cancelled worker finishes its engine step and commits what it has
Context = dg.AssetExecutionContext | dg.OpExecutionContext


class WorkerMisconfigured(LLMAssetsError):
    """The worker's settings cannot start anything."""


class Worker(dg.ConfigurableResource):
    """Runs generation tasks in the engine environment: a local Python or a Kubernetes pod.

    With `kubernetes`, task directories must be on a volume that `pod_spec` mounts at the same path, and the pod, not
    the Dagster step, requests the GPU: two pods that each wait for the only one wait forever.
    """

    backend: Literal["local", "kubernetes"] = "local"
    python: str | None = Field(default=None, description="Engine Python; unset finds `.venv-vllm` (see engine_python).")
    image: str | None = Field(default=None, description="Image of the engine pod; required for kubernetes.")
    namespace: str | None = Field(default=None, description="Namespace of the engine pod; unset takes this pod's own.")
    pod_spec: dict[str, Any] = Field(default={}, description="Pod spec merged in: volumes, node selector, GPU limits.")
    pod_python: str = Field(default="python", description="Python inside the image, with vLLM and this project.")

    def require(self) -> None:
        """Refuse now what could not be started later. Assets call it before they do any work.

        Raises:
            EngineEnvironmentMissing: no engine Python on this machine; names `make engine-env`.
            WorkerMisconfigured: kubernetes without an image.
        """
        if self.backend == "local":
            engine_python(self.python)
        elif not self.image:
            raise WorkerMisconfigured("Worker backend kubernetes needs an image. Set LLM_ASSETS_ENGINE_IMAGE.")

    def generate(
        self,
        context: Context,
        tasks: Sequence[GenerationTask],
        generation: GenerationConfig,
        engine: EngineConfig,
    ) -> None:
        """Answer all tasks in one worker process; read the answers with `engine.tasks.read_answers(task.output)`.

        Consecutive tasks on the same model share one engine start. Rows answered by an earlier, killed call are kept.

        Args:
            context: Of the running asset or op; receives the progress as log lines, also for a range of partitions.
            tasks: In the order they are served; none is no work.
            generation: Sampling, the same for every task.
            engine: Engine sizes; what is unset is planned from the requests.

        Raises:
            EngineEnvironmentMissing, WorkerMisconfigured: as `require`.
            DagsterPipesExecutionError: the worker failed; its traceback is in the log. Running again continues.
        """
        self.require()
        if not tasks:
            return
        if self.backend == "local":
            job = write_job(tasks, generation, engine, device_memory_bytes(), parent_pid=os.getpid())
            self._run_process(context, job, worker_environment(engine))
        else:
            job = write_job(tasks, generation, engine, None, parent_pid=None)
            self._run_pod(context, job, worker_environment(engine))

    def _run_process(self, context: Context, job: Path, environment: dict[str, str]) -> None:
        client = dg.PipesSubprocessClient(env=environment, termination_timeout_seconds=FLUSH_SECONDS)
        done = client.run(context=context, command=worker_command(str(engine_python(self.python)), job))
        done.get_results(implicit_materializations=False)

    def _run_pod(self, context: Context, job: Path, environment: dict[str, str]) -> None:
        from dagster_k8s import PipesK8sClient

        of_this_machine = ("PYTHONPATH", "OMP_NUM_THREADS")
        in_the_image = {name: value for name, value in environment.items() if name not in of_this_machine}
        grace = {"termination_grace_period_seconds": FLUSH_SECONDS}
        done = PipesK8sClient().run(
            context=context,
            image=self.image,
            command=worker_command(self.pod_python, job),
            namespace=self.namespace,
            env=in_the_image,
            base_pod_spec={**grace, **self.pod_spec},
            pod_wait_timeout=0,  # the default gives up on a day-long job
        )
        done.get_results(implicit_materializations=False)
