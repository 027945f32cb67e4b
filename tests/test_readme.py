import re
import shlex
from pathlib import Path

import numpy as np

README = (Path(__file__).parents[1] / "README.md").read_text()
HOW_TO = (Path(__file__).parents[1] / "docs" / "howto.md").read_text()
TINIER = {
    "episodes=500": "episodes=4",
    "episodes=2_000": "episodes=3",
    "steps=1_000)": "steps=2)",
    "steps=10_000": "steps=2",
    "steps=8_000": "steps=2",
    "steps=3_000": "steps=2",
    "steps=20_000": "steps=120, episodes=3, critic_steps=2, evaluate_every=120, evaluation_episodes=2",
    "episodes=100": "episodes=1",
}
TINY = {"episodes=1_000": "episodes=3", "steps=3_000": "steps=2", "episodes=100": "episodes=1"}


def test_the_quickstart_runs(tmp_path: Path, monkeypatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for large, tiny in TINY.items():
        assert code.count(large) == 1
        code = code.replace(large, tiny)
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert set(namespace["actions"]) == {"robot_0", "robot_1", "robot_2", "robot_3"}
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    assert len(namespace["report"].success) == 1


def test_the_how_to_runs(tmp_path: Path, monkeypatch) -> None:
    code = "".join(re.findall(r"```python\n(.*?)```", HOW_TO, re.DOTALL))
    for large, tiny in TINIER.items():
        assert code.count(large) >= 1, large
        code = code.replace(large, tiny)
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(compile(code, "howto.md", "exec"), namespace)
    assert namespace["paths"].shape == (20, 24, 2)
    assert namespace["plan"].num_samples == 20
    assert np.isfinite(namespace["better"].final.value)


def test_every_command_that_the_readme_and_the_how_to_show_exists() -> None:
    from diffplan.cli import parse

    blocks = re.findall(r"```bash\n(diffplan .*?)```", README + HOW_TO, re.DOTALL)
    assert len(blocks) > 1
    for line in "".join(blocks).splitlines():
        parse(shlex.split(line, comments=True)[1:])


def anchors(page: Path) -> set[str]:
    """What a link to the page may end with, as code hosts make it of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_between_pages_and_to_pictures_leads_somewhere() -> None:
    root, links = Path(__file__).parents[1], 0
    for page in (*root.glob("*.md"), *root.glob("docs/*.md")):
        for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text()):
            linked = page.parent / target if target else page
            assert linked.is_file(), f"{page.name} links {target}"
            assert not anchor or anchor in anchors(linked), f"{page.name} links {target}#{anchor}"
            links += 1
    assert links > 20
