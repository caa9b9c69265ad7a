"""`python -m scalable.cli`, where no script was installed."""

from scalable.cli.main import main

main(prog_name="scalable")
