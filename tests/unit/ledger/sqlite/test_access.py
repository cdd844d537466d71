"""Who may use an SQLite ledger's files: modes, groups and links."""

import asyncio
import contextlib
import os
import stat

import pytest

from dpmesh.accounting import Accounting
from dpmesh.errors import LedgerError
from dpmesh.ledger import Budget, Ledger
from dpmesh.ledger.sqlite.admin import SQLiteAdmin
from dpmesh.ledger.sqlite.store import SQLiteStore

BUDGET = Budget("day", epsilon=1.0, delta=0.0, accounting=Accounting.PURE)
SUFFIXES = ["", "-wal", "-shm", "-witness"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "dir" / "ledger.db"


@contextlib.asynccontextmanager
async def opened(path):
    ledger = Ledger(SQLiteStore(path), [BUDGET])
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


async def use(path):
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", 1)])


async def remark(path):
    async with SQLiteAdmin(path).view() as view:
        return view.remark


@pytest.mark.parametrize("umask", [0, 0o002, 0o077])
async def test_a_new_ledger_is_its_owner_s_whatever_the_umask(path, umask):
    path.parent.parent.chmod(0o700)
    before = os.umask(umask)
    try:
        async with opened(path) as ledger:
            await ledger.charge([(0, b"a", 1)])
            files = list(path.parent.iterdir())
            assert {file.name for file in files} == {f"ledger.db{suffix}" for suffix in SUFFIXES}
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert await remark(path) == ""
    finally:
        os.umask(before)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("mode", [0o666, 0o602])
async def test_files_that_others_may_write_are_refused(path, suffix, mode):
    async with opened(path) as first:
        await first.charge([(0, b"a", 1)])
        file = path.with_name(path.name + suffix)
        file.chmod(mode)
        with pytest.raises(
            LedgerError, match=f"other users may write ledger.db{suffix}, .*chmod go-w"
        ) as caught:
            await use(path)
        with pytest.raises(LedgerError, match="other users may write"):
            await SQLiteAdmin(path).prune(0)
        assert await remark(path) == str(caught.value)
        file.chmod(0o600)
        await use(path)


@pytest.mark.parametrize("mode", [0o777, 0o702])
async def test_a_folder_that_others_may_write_is_refused(path, mode):
    path.parent.mkdir()
    path.parent.chmod(mode)
    with pytest.raises(LedgerError, match="other users may write its folder"):
        await use(path)
    assert list(path.parent.iterdir()) == []
    path.parent.chmod(0o1777)  # As /tmp: nobody can replace what is another's.
    await use(path)
    path.parent.chmod(mode)
    with pytest.raises(LedgerError, match="other users may write its folder"):
        await use(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other groups")
async def test_a_group_that_is_not_one_s_own_is_as_others_are(path):
    await use(path)
    own = os.getegid()
    foreign = max([own, *os.getgroups()]) + 1
    for file in (path, path.parent):
        mode = stat.S_IMODE(file.stat().st_mode)
        file.chmod(mode | 0o060)
        await use(path)  # The mode of a volume under Kubernetes with fsGroup.
        os.chown(file, -1, foreign)
        with pytest.raises(LedgerError, match="other users may write"):
            await use(path)
        os.chown(file, -1, own)
        file.chmod(mode)


@pytest.mark.parametrize("mode", [0o644, 0o604])
async def test_files_that_others_may_read_are_warned_of(path, caplog, mode):
    await use(path)
    assert caplog.text == ""
    path.chmod(mode)
    await use(path)
    (record,) = caplog.records
    assert "other users may read ledger.db, ledger.db-wal, ledger.db-shm, and so learn" in record.getMessage()
    assert "other users may read ledger.db, and so learn the secret" in await remark(path)


@pytest.mark.parametrize("existing", [False, True])
async def test_no_link_is_followed_for_the_witness(path, tmp_path, existing):
    """Neither is a file made elsewhere, nor one that is there written over; also not by `accept`."""
    async with opened(path):
        pass
    elsewhere = tmp_path / "elsewhere"
    if existing:
        elsewhere.write_bytes(b"")
    witness = path.with_name("ledger.db-witness")
    witness.unlink()
    witness.symlink_to(elsewhere)
    with pytest.raises(LedgerError, match=r"ledger\.db-witness is not a plain file"):
        await use(path)
    with pytest.raises(LedgerError, match=r"ledger\.db-witness is not a plain file"):
        await SQLiteAdmin(path).accept("me: a test", unnoticed=True)
    assert elsewhere.exists() == existing
    assert not existing or elsewhere.read_bytes() == b""


@pytest.mark.parametrize("existing", [False, True])
async def test_a_ledger_that_is_a_link_is_refused(path, tmp_path, existing):
    real = tmp_path / "real.db"
    if existing:
        await use(real)
    path.parent.mkdir()
    path.symlink_to(real)
    for attempt in (use(path), SQLiteAdmin(path).migrate(), remark(path)):
        with pytest.raises(LedgerError, match="is a symbolic link: set ledger.url"):
            await attempt
    assert real.exists() == existing
    assert os.listdir(path.parent) == ["ledger.db"]


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-witness"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
async def test_what_is_no_file_is_refused_at_once(path, tmp_path, suffix, kind):
    """SQLite would follow the link, and who opens a pipe would wait for ever."""
    await use(path)
    file = path.with_name(f"ledger.db{suffix}")
    file.unlink(missing_ok=True)
    make = {"link": lambda: file.symlink_to(tmp_path / "elsewhere"), "pipe": lambda: os.mkfifo(file)}
    make.get(kind, file.mkdir)()
    for attempt in (use(path), SQLiteAdmin(path).accept("me: a test", unnoticed=True)):
        with pytest.raises(LedgerError, match=f"ledger.db{suffix} is not a plain file"):
            await attempt
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("kind", ["file", "pipe"])
async def test_a_journal_is_never_applied(path, kind):
    """A ledger has none. Whoever puts one beside it would have SQLite write back what was there before a charge."""
    await use(path)
    journal = path.with_name("ledger.db-journal")
    os.mkfifo(journal) if kind == "pipe" else journal.write_bytes(b"")
    for attempt in (use(path), SQLiteAdmin(path).accept("me: a test", unnoticed=True)):
        with pytest.raises(LedgerError, match=r"ledger\.db-journal, which a ledger never has"):
            await attempt


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("suffix", ["", "-witness", "-wal"])
async def test_another_user_s_file_in_a_folder_that_everybody_may_write(path, suffix):
    """The sticky bit keeps others from replacing files, and not from making one before the ledger does."""
    await use(path)
    path.parent.chmod(0o1777)
    await use(path)
    file = path.with_name(f"ledger.db{suffix}")
    file.touch()
    os.chown(file, 65_534, 65_534)
    file.chmod(0o600)
    with pytest.raises(LedgerError, match=f"ledger.db{suffix} is another user's"):
        await use(path)
    path.parent.chmod(0o700)
    if suffix != "-wal":
        await use(path)


def test_a_folder_s_name_need_not_be_in_utf_8(tmp_path):
    store = SQLiteStore(
        os.path.join(os.fsencode(tmp_path), b"\xff\xe9", b"ledger.db").decode(errors="surrogateescape")
    )
    ledger = Ledger(store, [BUDGET])

    async def charge():
        await ledger.open()
        await ledger.charge([(0, b"a", 1)])
        await ledger.close()

    asyncio.run(charge())
    assert store.path.exists()
