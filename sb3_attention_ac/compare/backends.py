"""Where runs take place: this machine, or a Ray cluster."""

from sb3_attention_ac.compare.errors import CompareError, unknown_name

# The runs are processes of their own, so on this machine threads that wait for them are enough
JOBLIB_NAMES = {"local": "threading", "ray": "ray"}


def joblib_backend(name: str, address: str | None = None) -> str:
    """
    :param name: ``"local"`` or ``"ray"``
    :param address: Address of a Ray cluster, None for the one of the environment (``RAY_ADDRESS``), else one on this machine
    :return: Name of the backend in joblib, ready for use
    :raises CompareError: If the name is not known, Ray is not installed, or there is no cluster at the address
    """
    if name not in JOBLIB_NAMES:
        raise unknown_name("backend", name, JOBLIB_NAMES)
    if name == "ray":
        _connect(address)
    elif address is not None:
        raise CompareError(f"--address is {address!r}, which goes only with --backend ray.")
    return JOBLIB_NAMES[name]


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
        except (ConnectionError, RuntimeError) as error:
            raise CompareError(f"There is no Ray cluster at the address {address!r}: {error}") from error
    register_ray()
