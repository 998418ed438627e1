# Tasks of a developer, in a virtual environment: https://just.systems. Each line also works by itself.

default:
    @just --list

# Install m2f as it stands here, with what its tests need
setup:
    pip install -e ".[test]"

# Check style, layout and types
check:
    ruff check
    ruff format --check
    mypy

# Run all tests but the slow ones
test:
    pytest

# Run the tests that need no network: a few minutes less
test-fast:
    pytest -x tests/structures tests/results tests/runtime tests/config tests/metrics tests/test_architecture.py

# Try thousands of mutated inputs, and print a table of how they ended
fuzz:
    PYTHONPATH=tests python -m fuzz --count 20000 --seed 0

# Build the site of the documentation, and check it: links, citations, public names, commands, examples
docs:
    mkdocs build --strict
    pytest -x tests/test_docs.py tests/test_site.py tests/test_readme.py tests/test_public_api.py tests/test_adding.py tests/test_contributing.py

# Measure the speed of a small model
bench:
    m2f bench --preset small-panoptic --what image --size 128 192 --rounds 2

# Try the commands in many environments and print the matrix: half an hour
matrix:
    PYTHONPATH=tests python -m compatibility

# Kill every command at random places, and look whether it goes on to the same bits: an hour
faults:
    PYTHONPATH=tests python -m faults --kills 200 --seed 0
