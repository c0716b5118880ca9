"""The help of the command line, from the first lines and the comments of the files in `conf/`."""

from sentexp.cli.commands import Command
from sentexp.config import TEMPLATE_GROUP, conf_dir

HELP = """\
sentexp fine-tunes language models to classify sentiment.

  python -m sentexp                                  offline: a real pretrained model, real reviews, minutes on a CPU
  python -m sentexp peft=qlora data=sst2             any combination of the groups
  python -m sentexp task=causal_lm                   an instruction, answered by a word; the base beside it
  python -m sentexp data=csv data.path=reviews.csv data.text=body data.label=stars        your own table
  python -m sentexp peft.r=8 optim.lr=1e-4 seed=1    any key of the configuration
  python -m sentexp --multirun peft.r=4,8,16         a sweep; the same command resumes it and skips finished runs
  python -m sentexp --quick peft=qlora               two steps and all that follows them: what would fail, in a minute
  python -m sentexp plan --multirun peft.r=4,8,16    what that sweep would do, its time and memory; trains nothing
  python -m sentexp --multirun hydra/sweeper=optuna 'optim.lr=tag(log,interval(1e-5,1e-3))'     a search
  python -m sentexp runs                             every run that is recorded: identity, state, result
  python -m sentexp compare                          the latest sweep: which run is better, with intervals and tests
  python -m sentexp predict run=best input=new.csv output=predictions.csv   labels and probabilities of other texts
  python -m sentexp predict --text "..."             of one sentence, by the latest finished run; run= names another
  python -m sentexp evaluate run=best data=imdb      a finished run on other data
  python -m sentexp export run=best format=merged    for other programs: peft, merged, onnx, gguf; checked
  python -m sentexp push run=best to=me/reviews      its weights and their card to the Hugging Face hub, privately
  python -m sentexp register run=best name=reviews   a version in MLflow's registry; champion if it is clearly better
  python -m sentexp serve run=best                   an HTTP server and a page, on this machine alone
  python -m sentexp ui                               MLflow's UI over the recorded runs, on this machine alone
  python -m sentexp audit data=fpb                   look for duplicates, leaks and faults in the data; train nothing
  python -m sentexp prepare model=gpt2 data=sst2     fetch, convert and tokenise only: the run then needs no network
  python -m sentexp models                           every option of model=: size, licence, what it takes in memory
  python -m sentexp --cfg job                        print the whole configuration and stop

Options:
  --multirun, -m        run every combination of comma-separated values
  --verbose, -v         at the end, a table of where the time went
  --quick               try every path of a configuration, keep nothing; with --multirun once for each kind of run
  --cfg job             print the composed configuration; --package peft prints one group
  --config-dir FOLDER   also look for group options in FOLDER/<group>/<option>.yaml
  --hydra-help          the help of hydra, which composes the configuration
  --version             print the version

Groups and their options:
"""


def help_text() -> str:
    """Return the help: usage, and every option of every group with the first line of its file."""
    lines = [HELP]
    for group in sorted(folder for folder in conf_dir().iterdir() if folder.is_dir()):
        lines.append(f"task.{group.name}=" if group.name == TEMPLATE_GROUP else f"{group.name}=")
        for file in sorted(group.glob("*.yaml")):
            comments = [line[2:] for line in file.read_text().splitlines() if line.startswith("# ")]
            about = next((line for line in comments if not line.startswith("@package")), "")
            lines.append(f"  {file.stem:<36}{about}")
    return "\n".join(lines)


def help_of(command: Command) -> str:
    """Return the help of a command: its keys with what they mean, or all help where they are those of a run."""
    if not command.has_own_keys:
        return help_text()
    about, _, keys = (conf_dir() / f"{command.root}.yaml").read_text().partition("\n")
    lines = keys.partition("\nhydra:")[0].split("\n\n", 1)[1]
    return f"python -m sentexp {command.name} key=value ...\n\n{about.removeprefix('# ')}\n\n{lines.strip()}"
