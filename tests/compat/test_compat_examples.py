"""The documented Python examples of the older packages, run as programs that import them.

As written there, but for paths, for contents that were never published, and for one array of
invalid shape. What the documentation says that they give is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., "CompletedProcess[str]"]

KACHERY_2019 = """
    import kachery as ka
    import numpy as np

    p_text = ka.store_text('some text')
    p_obj = ka.store_object(dict(a=['some', 'object', 'that', 'can', 'be', 'json-serialized']))
    p_npy = ka.store_npy(np.ones((12, 12)))
    p_file = ka.store_file('file.dat')
    p_dir = ka.store_dir('directory')

    txt = ka.load_text(p_text)
    obj = ka.load_object(p_obj)
    array = ka.load_npy(p_npy)
    local_path = ka.load_file(p_file)
    bytes0 = ka.load_bytes(p_file, start=0, end=180000)
    dir_content = ka.read_dir(p_dir)
    txt2 = ka.load_text(p_dir + '/some_file_in_the_dir.txt')

    print(p_text, p_dir, p_file)
    print(txt, obj, array.shape, open(local_path, 'rb').read() == open('file.dat', 'rb').read())
    print(len(bytes0), dir_content, txt2)
"""


def test_the_example_of_the_first_kachery_runs(run: Run, home: Path) -> None:
    (home / "file.dat").write_bytes(bytes(range(256)) * 1000)
    (home / "directory" / "sub").mkdir(parents=True)
    (home / "directory" / "some_file_in_the_dir.txt").write_text("inside")
    lines = run(KACHERY_2019, KACHERY_URI_STYLE="2019").stdout.splitlines()
    uris = lines[0].split()
    assert uris[0] == "sha1://37aa63c77398d954473262e1a0057c1e632eda77/file.txt"
    assert uris[1].startswith("sha1dir://")
    assert uris[1].endswith(".directory")
    assert uris[2].endswith("/file.dat")
    assert lines[1].startswith("some text {'a': ['some', 'object',")
    assert lines[1].endswith("(12, 12) True")
    assert lines[2].startswith("180000 {'files': {'some_file_in_the_dir.txt': {'size': 6, 'sha1':")
    assert lines[2].endswith(" inside")


def test_without_any_setting_it_runs_too(run: Run, home: Path) -> None:
    (home / "file.dat").write_bytes(bytes(180_000))
    (home / "directory").mkdir()
    (home / "directory" / "some_file_in_the_dir.txt").write_text("inside")
    lines = run(KACHERY_2019).stdout.splitlines()
    assert lines[0].startswith("sha1://37aa63c77398d954473262e1a0057c1e632eda77 ")
    assert lines[1].startswith("some text {'a': ")


def test_the_example_with_remote_servers_runs(run: Run) -> None:
    said = run(
        """
        import kachery as ka
        import numpy as np

        ka.set_config(
            fr='default_readwrite',
            to='default_readwrite'
        )
        p_text = ka.store_text('some text')
        ka.set_config(
            fr='default_readonly'
        )
        txt = ka.load_text(p_text)
        print(p_text, txt)
        """,
        KACHERY_DEFAULT_PASSWORD="secret",
    ).stdout
    assert said == "sha1://37aa63c77398d954473262e1a0057c1e632eda77/file.txt some text\n"


def test_the_example_of_kachery_2_runs(run: Run, home: Path) -> None:
    (home / "filename.dat").write_bytes(b"test-content\n")
    said = run("""
        import numpy as np
        import kachery as ka

        uri1 = ka.store_file('filename.dat', cache_locally=True)
        uri2 = ka.store_text('example text', label='example.txt')
        uri3 = ka.store_json({'example': 'dict'}, label='example.json')
        array = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int16)
        uri4 = ka.store_npy(array, label='example.npy')
        print(uri1, uri2, uri3, uri4, sep='\\n')

        local_fname = ka.load_file(
            'sha1://b971c6ef19b1d70ae8f0feb989b106c319b36230?label=test_content.txt')
        text = ka.load_text('sha1://d9e989f651cdd269d7f9bb8a215d024d8d283688?label=example.txt')
        x = ka.load_json('sha1://d0d9555e376ff13a08c6d56072808e27ca32d54a?label=example.json')
        y = ka.load_npy("sha1://bb55205a2482c6db2ace544fc7d8397551110701?label=example.npy")
        print(open(local_fname).read(), text, x, y.tolist(), y.dtype)
    """).stdout.splitlines()
    assert said == [
        "sha1://b971c6ef19b1d70ae8f0feb989b106c319b36230",
        "sha1://d9e989f651cdd269d7f9bb8a215d024d8d283688?label=example.txt",
        "sha1://d0d9555e376ff13a08c6d56072808e27ca32d54a?label=example.json",
        "sha1://bb55205a2482c6db2ace544fc7d8397551110701?label=example.npy",
        "test-content",
        " example text {'example': 'dict'} [[1, 2, 3], [4, 5, 6]] int16",
    ]
    assert (home / "filename.dat").read_bytes() == b"test-content\n"


@pytest.mark.parametrize("zone", ["", "scratch", "default"])
def test_kachery_2_stores_and_loads_in_the_zones_that_need_no_table(run: Run, zone: str) -> None:
    program = """
        import kachery as ka
        uri = ka.store_text('example text', label='example.txt')
        print(uri, ka.load_text(uri))
    """
    said = run(program, **({"KACHERY_ZONE": zone} if zone else {})).stdout
    uri = "sha1://d9e989f651cdd269d7f9bb8a215d024d8d283688?label=example.txt"
    assert said == f"{uri} example text\n"


def test_the_files_part_of_the_example_of_kachery_client_runs(run: Run, home: Path) -> None:
    (home / "file.dat").write_bytes(b"data")
    said = run("""
        import kachery_client as kc
        import numpy as np

        uri_file = kc.store_file('file.dat')
        local_path = kc.load_file(uri_file)
        uri_text = kc.store_text('random-string')
        txt = kc.load_text(uri_text)
        uri_json = kc.store_json({'a': ['random', {'ob': 'ject'}]})
        x = kc.load_json(uri_json)
        uri_npy = kc.store_npy(np.ones((20, 30)))
        y = kc.load_npy(uri_npy)
        uri_pkl = kc.store_pkl({'a': np.ones((20, 30))})
        z = kc.load_pkl(uri_pkl)
        kc.set('key1', {'value': 1})
        v = kc.get('key1')
        print(open(local_path).read(), txt, x, y.sum(), z['a'].shape, v)
        print(uri_file, uri_text)
    """).stdout.splitlines()
    assert said == [
        "data random-string {'a': ['random', {'ob': 'ject'}]} 600.0 (20, 30) {'value': 1}",
        "sha1://a17c9aaa61e80a1bf71d0d850af4e5baa9800bbd/file.dat"
        " sha1://266b6405eeeb1de93f094dca261595517c69f3c1/file.txt",
    ]


def test_the_example_of_kachery_cloud_runs(run: Run) -> None:
    said = run("""
        import kachery_cloud as kcl
        import numpy as np
        kcl.init()
        array = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int16)
        uris = [
            kcl.store_text('example text', label='example.txt'),
            kcl.store_json({'example': 'dict'}, label='example.json'),
            kcl.store_npy(array, label='example.npy'),
            kcl.store_pkl({'example': array}, label='example.pkl'),
        ]
        print(*uris, sep='\\n')
        print(kcl.load_text(uris[0]), kcl.load_json(uris[1]), kcl.load_npy(uris[2]).tolist(),
              kcl.load_pkl(uris[3])['example'].tolist())
        print(kcl.load_text(kcl.store_text_local('test-content-local\\n', label='a.txt')), end='')
        print(kcl.store_text_local('test-content-local\\n', label='a.txt'))
    """).stdout.splitlines()
    assert said[0].startswith("Client ID: ")
    assert said[2:] == [
        "sha1://d9e989f651cdd269d7f9bb8a215d024d8d283688?label=example.txt",
        "sha1://d0d9555e376ff13a08c6d56072808e27ca32d54a?label=example.json",
        "sha1://bb55205a2482c6db2ace544fc7d8397551110701?label=example.npy",
        "sha1://20d178d5a1264fc3267e38ca238c23f3e2dcd5d2?label=example.pkl",
        "example text {'example': 'dict'} [[1, 2, 3], [4, 5, 6]] [[1, 2, 3], [4, 5, 6]]",
        "test-content-local",
        "sha1://414c7409445a8712a5e5c55d5554c84a515bd7f0?label=a.txt",
    ]


def test_the_example_of_the_first_kachery_cloud_gives_its_cids(run: Run, home: Path) -> None:
    (home / "test_content.txt").write_text("test-content\n")
    said = run(
        """
        import numpy as np
        import kachery_cloud as kcl

        uri1 = kcl.store_file('test_content.txt')
        uri2 = kcl.store_text('example text')
        uri3 = kcl.store_json({'example': 'dict'})
        array = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int16)
        uri4 = kcl.store_npy(array)
        uri5 = kcl.store_pkl({'example': array})
        print(uri1, uri2, uri3, uri4, uri5, sep='\\n')

        fname = kcl.load_file('ipfs://bafkreiajr6u7obg3mpunezz2mwarr2sptwr3zaedia665vdayvw6mpn5ga')
        text = kcl.load_text('ipfs://bafkreiaossxdnwtp6a4zfjl73w67i4ulmcoq277g5maz7kprxg23kqgygu')
        x = kcl.load_json('ipfs://bafkreig3edwqihmsm2o7kts6v4cpvtfs66olgonclogykndsu4v7ordox4')
        y = kcl.load_npy("ipfs://bafkreihqe5oxpuc5rvsj2pq77exjb5llx5abhth4vhac7tc6mxlrbyt6em")
        z = kcl.load_pkl("ipfs://bafkreihdk3qrmf4665bn7m72t2niah3lujblbcnlevly5l5mequnft6w3y")
        print(open(fname).read(), text, x, y.tolist(), z['example'].tolist())
        """,
        KACHERY_URI_STYLE="ipfs",
    ).stdout.splitlines()
    assert said == [
        "ipfs://bafkreiajr6u7obg3mpunezz2mwarr2sptwr3zaedia665vdayvw6mpn5ga",
        "ipfs://bafkreiaossxdnwtp6a4zfjl73w67i4ulmcoq277g5maz7kprxg23kqgygu",
        "ipfs://bafkreig3edwqihmsm2o7kts6v4cpvtfs66olgonclogykndsu4v7ordox4",
        "ipfs://bafkreihqe5oxpuc5rvsj2pq77exjb5llx5abhth4vhac7tc6mxlrbyt6em",
        "ipfs://bafkreihdk3qrmf4665bn7m72t2niah3lujblbcnlevly5l5mequnft6w3y",
        "test-content",
        " example text {'example': 'dict'} [[1, 2, 3], [4, 5, 6]] [[1, 2, 3], [4, 5, 6]]",
    ]


def test_the_examples_of_kachery_p2p_run(run: Run, home: Path) -> None:
    (home / "msg.txt").write_text("Here is my message")
    said = run("""
        import warnings
        import kachery_p2p as kp
        warnings.simplefilter('ignore', DeprecationWarning)
        print(kp.store_file('msg.txt'))
        uri = kp.store_object({'name': 'example-object'})
        print(kp.load_object(uri))
        found = kp.find_file(uri)
        print(found.local)
        kp.set('key', 'value')
        print(kp.get_string('key'))
    """).stdout.splitlines()
    assert said == [
        "sha1://58c3a504f91dab6ade375c69d9f78e312520f1b4/msg.txt",
        "{'name': 'example-object'}",
        "True",
        "value",
    ]


def test_a_program_sees_its_own_arguments_modules_and_name(run: Run, home: Path) -> None:
    (home / "beside.py").write_text("NAME = 'beside'\n")
    said = run(
        """
        import sys, beside
        import kachery_cloud
        print(sys.argv[1:], __name__, beside.NAME, kachery_cloud.__name__)
        """,
        "-x",
        "--flag",
    ).stdout
    assert said == "['-x', '--flag'] __main__ beside kachery_cloud\n"
