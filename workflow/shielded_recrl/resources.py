"""Settings of what a job may take from the machine."""

from pydantic import Field

from shielded_recrl.settings import Settings


class ResourceSettings(Settings):
    """What each job that runs the LM takes."""

    threads: int = Field(1, ge=1, description="CPU threads of a job that runs the LM.")
    mem_mb: int = Field(1800, ge=100, description="Memory of a job that runs the LM, in MB.")
    gpu: int = Field(0, ge=0, description="GPUs of a job that runs the LM.")
