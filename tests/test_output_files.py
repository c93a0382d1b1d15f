"""Outputs that are links, mount points or no files; files appear complete or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybridize.errors import InputError
from hybridize.output_files import check_output_file, follow_link, is_mount_point, write_atomically
from tiny import write_stock


def test_a_file_is_written_where_a_link_leads(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "result.json"
    link.symlink_to("disk/real.json")
    check_output_file(link, force=False)
    write_atomically(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "disk" / "real.json").read_text() == "new"
    assert os.listdir(tmp_path / "disk") == ["real.json"]
    with pytest.raises(InputError, match="`force` replaces"):
        check_output_file(link, force=False)


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("result.json", "leads back to itself"),
        ("gone/real.json", "make it, or delete the link"),
        (os.devnull, "not an ordinary file"),
        (".", "is a directory"),
    ],
)
def test_a_file_that_cannot_be_replaced_is_refused(tmp_path, target, complaint):
    link = tmp_path / "result.json"
    link.symlink_to(target)
    for force in (False, True):
        with pytest.raises(InputError, match=complaint):
            check_output_file(link, force=force)
    assert link.is_symlink()


@pytest.mark.parametrize("length", [250, 300])
def test_a_name_that_leaves_no_room_for_the_unfinished_file_is_refused(tmp_path, length):
    with pytest.raises(InputError, match="File name too long"):
        check_output_file(tmp_path / ("x" * length), force=False)
    assert os.listdir(tmp_path) == []


def test_mount_points_are_recognized(tmp_path):
    assert is_mount_point(Path("/"))
    assert not is_mount_point(tmp_path)
    assert follow_link(tmp_path) == tmp_path


SCRIPT = """
set -e
cd "$1"; shift
mkdir volume "a b"; touch file.json
mount -t tmpfs none volume 2>/dev/null || exit 77
mount --bind model "a b"
mount --bind model/config.json file.json
ln -s volume link
mkdir layer upper work merged; mkdir layer/out; touch layer/out/old
"$@" convert model -o volume --attention 1 || echo "code $?"
"$@" convert model -o "a b" --attention 1 --force || echo "code $?"
"$@" convert model -o link --attention 1 --force || echo "code $?"
"$@" inspect model --states model/config.json --plot file.json --force || echo "code $?"
if mount -t overlay none -o lowerdir=layer,upperdir=upper,workdir=work,redirect_dir=off merged \
        2>/dev/null; then
    "$@" convert model -o merged/out --attention 1 --force || echo "code $?"
    ls merged/out
else
    printf 'code 2\\nold\\n'
fi
ls volume
"""


def test_what_cannot_be_renamed_is_refused_before_the_work(tmp_path):
    """A mounted volume, a bind mount, a mounted file, and a directory of a container's image."""
    write_stock(tmp_path / "model", "llama")
    command = ["unshare", "-m", "sh", "-c", SCRIPT, "sh", str(tmp_path)]
    try:
        done = subprocess.run(
            [*command, sys.executable, "-m", "hybridize"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("needs the permission to mount")
    assert done.stdout == "code 2\n" * 5 + "old\n", (done.stdout, done.stderr)
    lines = done.stderr.splitlines()
    assert all("is a mount point, which cannot be replaced" in line for line in lines[:4]), lines
    assert all("cannot be replaced (Invalid cross-device link)" in line for line in lines[4:])
