# What there is to do. `just` alone lists it, `just test tests/test_mlp.py` passes arguments on.

# List the tasks
default:
    @just --list

# Set up this environment: the package with what it trains and tests with
setup:
    pip install --editable ".[train,test]"

# The quick tests, minutes
test *arguments:
    pytest -n auto {{arguments}}

# The slow tests: full matrices, kills, several processes
slow *arguments:
    pytest -n auto --dist worksteal -m slow {{arguments}}

# Style and types
style:
    .ci/step style

# Write the list of public names and signatures anew, after they were changed on purpose
names:
    python tests/public_names.py > tests/public_names.txt

# Plant small mistakes: which does the quick suite notice? (hours; for a file: just mistakes mlp)
mistakes *arguments:
    python scripts/checks/planted.py {{arguments}}

# Time funcnet against its peers and keep the figures (extra `bench`)
benchmark *arguments:
    python scripts/benchmarks/benchmark.py {{arguments}}

# Build the documentation (extra `docs`)
docs:
    .ci/step docs

# All that has to pass before a change is taken: fresh environments, both versions of jax, about half an hour
gate:
    .ci/run
