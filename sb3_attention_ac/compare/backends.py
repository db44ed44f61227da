"""Where runs take place: this machine, or a Ray cluster."""

from typing import Any

from sb3_attention_ac.compare.errors import CompareError, unknown_name

SETTINGS: dict[str, dict[str, Any]] = {
    # The runs are processes of their own, so on this machine threads that wait for them are enough
    "local": {"backend": "threading"},
    # A machine that leaves the cluster takes its runs along; they start again on another
    "ray": {"backend": "ray", "ray_remote_args": {"max_restarts": -1, "max_task_retries": 3}},
}


def joblib_backend(name: str, address: str | None = None) -> dict[str, Any]:
    """
    :param name: ``"local"`` or ``"ray"``
    :param address: Address of a Ray cluster, None for the one of the environment (``RAY_ADDRESS``), else one on this machine
    :return: Settings for ``joblib.parallel_config``, ready for use
    :raises CompareError: If the name is not known, Ray is not installed, or there is no cluster at the address
    """
    if name not in SETTINGS:
        raise unknown_name("backend", name, SETTINGS)
    if name == "ray":
        _connect(address)
    elif address is not None:
        raise CompareError(f"--address is {address!r}, which goes only with --backend ray.")
    return SETTINGS[name]


def _connect(address: str | None) -> None:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise CompareError(
            "The backend 'ray' needs the package 'ray', which is not installed; run `pip install ray`."
        ) from error
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False)
        except Exception as error:  # Ray raises this very class when a machine starts too slowly
            where = "on this machine" if address is None else f"at the address {address!r}"
            raise CompareError(
                f"No Ray cluster could be reached {where}; check --address and `ray status` ({error})."
            ) from error
    register_ray()
