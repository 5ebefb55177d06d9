"""Build, check and, with ``--publish``, upload a release: ``python .ci/release.py``, at the root of the repository.

Without ``--publish`` it is a dry run: nothing leaves the machine. The package goes to the index by twine, the bundled
models to the Hugging Face hub by ``capsdesc publish``. Both take their tokens from where they always do: twine from its
configuration, the keyring or TWINE_PASSWORD, the hub from ``hf auth login`` or HF_TOKEN.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

MODELS = Path("capsdesc/weights/bundled")
UNRELEASED = "unreleased"


def run(*command: str) -> None:
    """Run one of Python's modules; exits if it fails."""
    print("+", *command, flush=True)
    if subprocess.run([sys.executable, "-m", *command]).returncode != 0:
        sys.exit(f"{command[0]} failed")


def release() -> tuple[str, str]:
    """Version and date of the newest entry of the changelog."""
    heading = re.search(r"^## \[(.+?)\] - (.+)$", Path("CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    if heading is None:
        sys.exit("CHANGELOG.md has no entry `## [VERSION] - DATE`")
    return heading[1], heading[2].strip()


def packages(folder: Path, version: str) -> list[str]:
    """The wheel and the sdist of a version, checked: their content, their metadata, and how the README will show."""
    found = sorted(path for path in folder.glob("*") if path.name.endswith((".whl", ".tar.gz")))
    named = f"capsdesc-{version}-", f"capsdesc-{version}.tar.gz"
    if others := [path.name for path in found if not path.name.startswith(named)]:
        sys.exit(f"CHANGELOG.md is of version {version}, {', '.join(others)} of another")
    if subprocess.run([sys.executable, ".ci/check_packages.py", *map(str, found)]).returncode != 0:
        sys.exit(f"the packages in {folder} are not fit to be released")
    run("twine", "check", "--strict", *map(str, found))
    return [str(path) for path in found]


def models() -> list[Path]:
    """Folders of the bundled models, each of which loads and has its card."""
    # Here and not above: torch takes seconds, and most of what is refused is known before.
    from capsdesc.weights.bundled import names
    from capsdesc.weights.files import CARD_FILE, read_local

    folders = [MODELS / name for name in names()]
    for folder in folders:
        read_local(folder).build()
        if not (folder / CARD_FILE).is_file():
            sys.exit(f"{folder} has no {CARD_FILE}")
    return folders


def publish_command(model: Path, organisation: str, version: str) -> tuple[str, ...]:
    """What puts a model on the hub."""
    repository = f"{organisation}/capsdesc-{model.name}"
    return "capsdesc.commands.main", "publish", str(model), repository, "--message", f"capsdesc {version}"


def check_publishable(date: str) -> None:
    """What is uploaded must be what is committed, under a date."""
    if date == UNRELEASED:
        sys.exit(f"CHANGELOG.md says {UNRELEASED}; put the date of the release in its place and commit that")
    changed = subprocess.run(["git", "status", "--porcelain"], check=True, stdout=subprocess.PIPE, text=True).stdout
    if changed:
        sys.exit(f"the working tree differs from what is committed:\n{changed}")


def main() -> None:
    """Dry run or release."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dist", type=Path, metavar="DIR", help="packages that are built already (default: build them)"
    )
    parser.add_argument("--publish", action="store_true", help="upload; cannot be taken back")
    parser.add_argument("--hub", metavar="ORG", default="ORG", help="organisation on the hub that the models go to")
    options = parser.parse_args()
    if options.publish and options.hub == parser.get_default("hub"):
        parser.error("--publish needs --hub, the organisation that the models go to")

    version, date = release()
    if options.publish:
        check_publishable(date)
    with tempfile.TemporaryDirectory() as scratch:
        if options.dist is None:
            run("build", "--outdir", scratch)
        files = packages(options.dist or Path(scratch), version)
        uploads = [
            # What can be repeated comes first: no version is ever uploaded twice to an index.
            *(publish_command(model, options.hub, version) for model in models()),
            ("twine", "upload", "--non-interactive", "--disable-progress-bar", *files),
        ]
        for upload in uploads:
            if options.publish:
                run(*upload)
            else:
                print("would run: python -m", *upload)


if __name__ == "__main__":
    main()
