"""The blocks of the guides, as test_readme.py runs those of other pages; another process runs another file."""

from __future__ import annotations

import pytest
import test_readme as pages

home = pages.home


@pytest.mark.slow
@pytest.mark.parametrize("page", filter(pages.is_guide, pages.STEPS))
def test_the_blocks_of_a_guide_run_in_their_order(home, page, monkeypatch):
    pages.run_blocks(home, page, monkeypatch)
