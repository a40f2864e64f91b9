"""``python -m cst_search.trial``: one trial from a plain shell, see `cst_search.trial.run`."""

from cst_search.trial.run import main

if __name__ == "__main__":
    main()
