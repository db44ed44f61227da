"""Integration in RL Zoo (https://github.com/DLR-RM/rl-baselines3-zoo): algorithm, hyperparameters, tuning."""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from sb3_attention_ac.aac import AttentionActorCritic
from sb3_attention_ac.networks.distributions import forbids_actions

if TYPE_CHECKING:
    import optuna

ZOO_KEY = "aac"

NET_ARCHS = {
    "small": dict(pi=[64, 64], vf=[64, 64]),
    "medium": dict(pi=[256, 256], vf=[256, 256]),
}
ACTIVATION_FNS = {"tanh": nn.Tanh, "relu": nn.ReLU}
MEMORIES = {
    "critic": dict(memory_actor=False),
    "actor": dict(memory_actor=True, share_encoder=True),
}


def hyperparams_path() -> Path:
    """
    :return: Path of the hyperparameter file in the format of RL Zoo
    """
    package = Path(__file__).parent
    installed = package / "hyperparams" / f"{ZOO_KEY}.yml"
    # In a checkout (editable installation) the folder is next to the package
    return installed if installed.is_file() else package.parent / "hyperparams" / f"{ZOO_KEY}.yml"


def sample_aac_params(trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sampler for the hyperparameters of :class:`AttentionActorCritic`.

    RL Zoo replaces the ``policy_kwargs`` of the hyperparameter file by the sampled ones as a whole,
    hence everything a task with partial observability needs is sampled too. The learning rate always falls to zero:
    a trial is worth its last evaluation, which is chance while the learning rate is large.

    :param trial: Trial of Optuna
    :param n_actions: Number of continuous actions, unused
    :param n_envs: Number of parallel environments, unused
    :param additional_args: Arguments for HER, unused
    :return: Keyword arguments for the constructor
    """
    params: dict[str, Any] = {
        "n_steps_pow": trial.suggest_int("n_steps_pow", 5, 10),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 6, 9),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-3, 0.1, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 0.01, 0.2, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True),
        "ent_coef": trial.suggest_float("ent_coef", 1e-6, 0.03, log=True),
        "clip_range": trial.suggest_categorical("clip_range", [0.1, 0.2, 0.4]),
        "normalize_advantage": trial.suggest_categorical("normalize_advantage", [True, False]),
        "n_epochs": trial.suggest_categorical("n_epochs", [5, 10]),
        "net_arch": trial.suggest_categorical("net_arch", list(NET_ARCHS)),
        "activation_fn": trial.suggest_categorical("activation_fn", list(ACTIVATION_FNS)),
        "memory": trial.suggest_categorical("memory", list(MEMORIES)),
        "context_length_pow": trial.suggest_int("context_length_pow", 3, 6),
        "aux_loss": trial.suggest_categorical("aux_loss", ["none", "next_step"]),
        "aux_coef": trial.suggest_float("aux_coef", 0.1, 1.0, log=True),
    }
    # RL Zoo reads "lin_..." in files and of trials that are loaded, but not here
    hyperparams = convert_aac_params(params) | {"learning_rate": LinearSchedule(params["learning_rate"], 0.0, 1.0)}
    # Display true values
    for name in ["n_steps", "batch_size", "gamma", "gae_lambda"]:
        trial.set_user_attr(name, hyperparams[name])
    trial.set_user_attr("context_length", hyperparams["policy_kwargs"]["context_length"])
    return hyperparams


def convert_aac_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Convert the parameters of a trial (as saved by Optuna) to hyperparameters.

    :param sampled_params: Parameters of the trial
    :return: Hyperparameters as in a file of RL Zoo
    """
    hyperparams = sampled_params.copy()
    for name in ["n_steps", "batch_size", "context_length"]:
        hyperparams[name] = 2 ** hyperparams.pop(f"{name}_pow")
    for name in ["gamma", "gae_lambda"]:
        hyperparams[name] = 1 - hyperparams.pop(f"one_minus_{name}")
    hyperparams["learning_rate"] = f"lin_{hyperparams['learning_rate']}"
    if hyperparams["aux_loss"] == "none":
        hyperparams["aux_loss"], hyperparams["aux_coef"] = None, None  # without a loss its coefficient has no effect
    hyperparams["policy_kwargs"] = {
        "net_arch": NET_ARCHS[hyperparams.pop("net_arch")],
        "activation_fn": ACTIVATION_FNS[hyperparams.pop("activation_fn")],
        "context_length": hyperparams.pop("context_length"),
        **MEMORIES[hyperparams.pop("memory")],
    }
    return hyperparams


class MaskAwareEvalCallback(MaskableEvalCallback):
    """SB3's evaluation during training; with action masks where the model was given some in training."""

    def _on_step(self) -> bool:
        """:return: Whether training goes on"""
        evaluates = self.eval_freq > 0 and self.n_calls % self.eval_freq == 0
        self.use_masking = evaluates and bool(getattr(self.model, "use_masking", False)) and forbids_actions(self.eval_env)
        return super()._on_step() if self.use_masking else EvalCallback._on_step(self)


def _register_algorithm(module: ModuleType) -> None:
    # All modules of RL Zoo share this dictionary. setdefault: an entry of RL Zoo itself has precedence
    module.ALGOS.setdefault(ZOO_KEY, AttentionActorCritic)


def _register_sampler(module: ModuleType) -> None:
    module.HYPERPARAMS_SAMPLER.setdefault(ZOO_KEY, sample_aac_params)
    module.HYPERPARAMS_CONVERTER.setdefault(ZOO_KEY, convert_aac_params)


def _register_manager(module: Any) -> None:
    _register_hyperparams(module)
    if getattr(module, "EvalCallback", None) is EvalCallback:
        attributes = {"__module__": module.__name__}
        module.EvalCallback = MaskAwareEvalCallback
        module.TrialEvalCallback = type("TrialEvalCallback", (module.TrialEvalCallback, MaskAwareEvalCallback), attributes)


def _register_hyperparams(module: ModuleType) -> None:
    manager = module.ExperimentManager
    init = manager.__init__
    if hasattr(init, "finds_aac_hyperparams"):
        return
    package = Path(str(module.__file__)).parent
    # RL Zoo keeps its files in the package, or next to it in a checkout
    missing_files = {str(folder / "hyperparams" / f"{ZOO_KEY}.yml") for folder in (package, package.parent)}

    @functools.wraps(init)
    def init_with_own_default(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        # The file is read later. An explicit `--conf-file` and a file that the user gave to RL Zoo have precedence
        if self.algo == ZOO_KEY and self.config in missing_files and not Path(self.config).is_file():
            self.config = str(hyperparams_path())

    marked: Any = init_with_own_default
    marked.finds_aac_hyperparams = True
    manager.__init__ = marked


_REGISTRATIONS: dict[str, Callable[[ModuleType], None]] = {
    "rl_zoo3.utils": _register_algorithm,
    "rl_zoo3.hyperparams_opt": _register_sampler,
    "rl_zoo3.exp_manager": _register_manager,
}


def on_import(name: str, module: ModuleType) -> None:
    """
    Do the part of the registration that belongs to one module of RL Zoo.

    :param name: Name of the module
    :param module: The module, which was just imported
    """
    _REGISTRATIONS[name](module)


def register() -> None:
    """
    Register the algorithm as ``aac`` in RL Zoo.

    Only needed where Python does not process the start-up files of the package: in a kernel that was already running
    when the package was installed, with ``pip install --target``, or in a frozen application.
    """
    for name in _REGISTRATIONS:
        on_import(name, importlib.import_module(name))
