"""Completion of the `semaim` program in bash and zsh: verbs, options, groups, choices and option names.

The script contains all words, so that the shell completes without starting Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omegaconf import OmegaConf

from semaim.config.compose import CONF, choices, options
from semaim.config.naming import flatten

COMPOSING = ("run", "check", "features")  # verbs that take configuration options
BASH = r"""
_semaim() {
    local current="${COMP_WORDS[COMP_CWORD]}" verb="${COMP_WORDS[1]}"
    local line="${COMP_LINE:0:COMP_POINT}"
    current="${line##*[[:space:]]}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "@VERBS@" -- "$current"))
        return
    fi
    local words="" composing=""
    case "$verb" in
@CASES@
    esac
    if [ -n "$composing" ]; then words="$words $_semaim_options"; fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [ -z "$composing" ] && [ "${current#-}" = "$current" ]; then
        local IFS=$'\n'   # names of files may have spaces
        COMPREPLY+=($(compgen -f -- "$current"))
    fi
    if [ -n "$BASH_VERSION" ]; then   # bash splits words at "="
        case "$current" in *=*) COMPREPLY=("${COMPREPLY[@]#"${current%%=*}="}") ;; esac
        case "${COMPREPLY[0]}" in *=) compopt -o nospace 2>/dev/null ;; esac
    fi
}
complete -o filenames -F _semaim semaim
"""


def option_words() -> list[str]:
    """`group=choice` for all choices, and `option=` for all options of the default composition."""
    groups = sorted(
        folder for folder in CONF.iterdir() if folder.is_dir() and folder.name not in ("hydra", "experiment")
    )
    words = [f"{group.name}={choice}" for group in groups for choice in choices(group.name)]
    words += [f"+experiment={choice}" for choice in choices("experiment")]
    words += [f"hydra/launcher={name}" for name in choices("hydra/launcher")]
    defaults = flatten(OmegaConf.to_container(options(), resolve=False))
    names = {group.name for group in groups}
    keys = [key for key, value in defaults.items() if not (key.startswith("task.") and str(value).startswith("${"))]
    hidden = ("_target_", "_partial_", "named_after", "run_dir")
    return words + [f"{key}=" for key in sorted(keys) if key.split(".")[-1] not in hidden and key not in names]


def script(shell: str, flags: Mapping[str, Sequence[str]]) -> str:
    """The completion script of a shell.

    Args:
        shell: "bash" or "zsh".
        flags: the --options of each verb.
    """
    cases = "\n".join(
        f'        {verb}) words="{" ".join(words)}"{" composing=yes" if verb in COMPOSING else ""} ;;'
        for verb, words in flags.items()
    )
    body = BASH.replace("@VERBS@", " ".join(flags)).replace("@CASES@", cases)
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return f'{start}_semaim_options="{" ".join(option_words())}"\n{body}'
