"""The download says what to do, whatever goes wrong; nothing here uses a network."""

import dataclasses
import inspect
import ssl
import sys
import types
import urllib.error
import urllib.request
from email.message import Message

import pytest
from PIL import Image

from covjax.data import download

INFECTION = "Infection Segmentation Data"


def make_tree(root):
    folder = root / INFECTION / INFECTION / "Val" / "Normal" / "images"
    folder.mkdir(parents=True)
    Image.new("L", (4, 4)).save(folder / "a.png")
    return root


@dataclasses.dataclass
class Kaggle:
    """Stands in for kagglehub: gives a folder, or raises."""

    answer: object
    calls: list = dataclasses.field(default_factory=list)

    def dataset_download(self, handle, **where):
        self.calls.append((handle, where))
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """A reachable Kaggle that sends a whole set."""
    fake = Kaggle(make_tree(tmp_path / "cache"))
    module = types.ModuleType("kagglehub")
    monkeypatch.setattr(
        module, "dataset_download", fake.dataset_download, raising=False
    )
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    monkeypatch.setattr(download, "_knock", lambda: None)
    return fake


def test_prints_where_it_lies_and_what_comes_next(kaggle, tmp_path, capsys):
    assert download.main([]) == 0
    assert kaggle.calls == [("anasmohammedtahir/covidqu", {})]
    cache = tmp_path / "cache"
    assert capsys.readouterr().out.splitlines() == [
        f"COVID-QU-Ex lies in {cache}",
        f"export COVJAX_DATA={cache}",
        f"python -m covjax.data.audit {cache}",
    ]


def test_folder_is_passed_on_and_quoted_for_the_shell(kaggle, tmp_path, capsys):
    dest = tmp_path / "my data"
    kaggle.answer = dest

    def send(handle, output_dir):
        make_tree(dest)
        return output_dir

    sys.modules["kagglehub"].__dict__["dataset_download"] = send
    assert download.main([str(dest)]) == 0
    assert f"export COVJAX_DATA='{dest}'" in capsys.readouterr().out


def test_set_that_lies_there_is_not_downloaded_again(kaggle, tmp_path, capsys):
    assert download.main([str(make_tree(tmp_path / "mine"))]) == 0
    assert kaggle.calls == []
    assert "nothing was downloaded" in capsys.readouterr().out


def test_folder_with_other_things_is_refused(kaggle, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("")
    for dest in (tmp_path, tmp_path / "thesis.tex"):
        assert download.main([str(dest)]) == 2
        assert f"{dest}: neither empty" in capsys.readouterr().err
    assert kaggle.calls == []


def test_says_how_to_install_kagglehub(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "kagglehub", None)  # as if not installed
    assert download.main([]) == 2
    error = capsys.readouterr().err
    assert "pip install 'covjax[download]'" in error
    assert len(error.splitlines()) == 2


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("HTTPSConnectionPool(host='api.kaggle.com'): refused"),
        RuntimeError("403 Client Error.\n\nYou don't have permission"),
        OSError(28, "No space left on device"),
        KeyError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_failure_is_told_in_two_lines(kaggle, capsys, error):
    kaggle.answer = error
    assert download.main([]) == 2
    first, second = capsys.readouterr().err.splitlines()
    reason = str(error).splitlines()[0] if str(error) else "KeyError"
    assert first == f"kagglehub got no anasmohammedtahir/covidqu: {reason}"
    assert "https://www.kaggle.com/datasets/anasmohammedtahir/covidqu" in second
    assert "COVJAX_DATA" in second


def test_another_set_is_refused(kaggle, tmp_path, capsys):
    kaggle.answer = tmp_path / "other"
    assert download.main([]) == 2
    assert "neither of the two trees" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError(OSError(-2, "Name not known")), TimeoutError("timed out")],
    ids=["no name", "silence"],
)
def test_offline_is_told_before_kagglehub_is_asked(kaggle, monkeypatch, capsys, error):
    monkeypatch.undo()  # the real knock
    fake = types.ModuleType("kagglehub")
    monkeypatch.setitem(sys.modules, "kagglehub", fake)

    def urlopen(request, timeout):
        assert 0 < timeout <= 30  # kagglehub itself would wait for minutes
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert download.main([]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("https://api.kaggle.com cannot be reached: ")
    assert download.PAGE in second


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.HTTPError("https://api.kaggle.com", 404, "", Message(), None),
        urllib.error.URLError(ssl.SSLError("unknown certificate")),
    ],
    ids=["404", "certificate"],
)
def test_any_answer_counts_as_reachable(monkeypatch, error):
    def urlopen(request, timeout):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    download._knock()


def test_kagglehub_has_the_arguments_that_are_used():
    import kagglehub  # an extra of users, but one of the developers' tools

    parameters = inspect.signature(kagglehub.dataset_download).parameters
    assert list(parameters)[0] == "handle"
    assert "output_dir" in parameters
