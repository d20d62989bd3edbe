"""Has TFDS prepare a data set, after a look at whether it can."""

import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path

from tfmp import files
from tfmp.data.base import DataError, Options

PROBE_SECONDS = 3.0


def prepare(name: str, builder, options: Options) -> None:
    """Prepares the data, from `options.manual_dir` or over the network, with checksums enforced.

    Raises:
        DataError: If files are missing or damaged, the network can't be reached, or TFDS fails.
    """
    import tensorflow_datasets as tfds

    urls = builder.url_infos or {}  # some sets have none
    if options.manual_dir is not None:
        _check_manual_dir(name, builder, urls, Path(options.manual_dir).expanduser())
    elif builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        instructions = " ".join(str(builder.MANUAL_DOWNLOAD_INSTRUCTIONS).split())
        raise DataError(
            f"{name} isn't prepared in {builder.data_path}, and TFDS can't download it: fetch its "
            f"files yourself and give their folder as --manual_dir. TFDS says: {instructions}"
        )
    elif not network_reachable(next(iter(urls), "https://storage.googleapis.com")):
        raise DataError(
            f"{name} isn't prepared in {builder.data_path}, and there is no network to download "
            "it. Give the folder of prepared data as --data_dir, or that of its original files "
            "as --manual_dir, or prepare it on a machine with a network."
        )
    config = tfds.download.DownloadConfig(
        manual_dir=options.manual_dir, try_download_gcs=False, force_checksums_validation=True
    )
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # TFDS passes on whatever its data sets and downloads raise
        raise DataError(
            f"TFDS can't prepare {name} in {builder.data_path}: {type(error).__name__}: {error}"
        ) from error


def network_reachable(url: str) -> bool:
    """Whether a connection to the host of a URL, or to the proxy in use, opens within 3 s."""
    target = urllib.parse.urlsplit(url)
    if proxy := urllib.request.getproxies().get(target.scheme):
        target = urllib.parse.urlsplit(proxy)
    port = target.port or {"http": 80, "ftp": 21}.get(target.scheme, 443)
    opened = threading.Event()

    def connect():
        try:
            socket.create_connection((target.hostname, port), PROBE_SECONDS).close()
            opened.set()
        except OSError:
            pass

    # Looking up the name has no time limit of its own.
    probe = threading.Thread(target=connect, daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return opened.is_set()


def _check_manual_dir(name: str, builder, urls: dict, folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"Expected a folder as manual_dir. Received: {folder}, which is none.")
    known = {_file_name(url, info): info for url, info in urls.items()}
    present = [file for file in known if (folder / file).is_file()]
    missing = sorted(set(known) - set(present))
    # A list of checksums may name files that this version of a set no longer needs.
    if missing and (not present or not network_reachable(next(iter(urls)))):
        raise DataError(
            f"Expected the original files of {name} in {folder}. Received: a folder without "
            f"{', '.join(missing)}. Put them there, under these names."
        )
    for file in present:
        size, digest = int(known[file].size), known[file].checksum
        found = (folder / file).stat().st_size
        if found != size:
            raise DataError(
                f"Expected {folder / file} to have {size} bytes. Received: {found}. Fetch it again."
            )
        if files.sha256(folder / file) != digest:
            raise DataError(
                f"Expected {folder / file} to have the SHA-256 {digest}. Received: another. "
                "The file is damaged or of another version: fetch it again."
            )


def _file_name(url: str, info) -> str:
    return info.filename or Path(urllib.parse.urlsplit(url).path).name
