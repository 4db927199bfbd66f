"""Programs of the older packages among real nodes: feeds, and contents that others have."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.processes.conftest import Lab, NodeProcess

pytestmark = pytest.mark.processes

CLIENT_EXAMPLE = """
    import kachery_client as kc

    # Create a new feed and load a subfeed
    f = kc.create_feed()
    sf = f.load_subfeed('subfeed-name')

    # Append messages
    sf.append_message({'message': 1})
    sf.append_messages([{'message': 2}, {'message': 3}])

    # Get feed/subfeed uri
    uri_f = f.uri
    uri_sf = sf.uri

    # Load a subfeed from uri and read messages
    sf2 = kc.load_subfeed(uri_sf)
    messages = sf2.get_next_messages()

    # Load a feed from uri
    f2 = kc.load_feed(uri_f)
    sf3 = f2.load_subfeed('subfeed-name')
    messages2 = sf3.get_next_messages()

    watched = kc.watch_for_new_messages(
        {'a': {'feedId': f.feed_id, 'subfeedName': 'subfeed-name', 'position': 1}}, wait_msec=10)
    named = kc.create_feed('by-name').feed_id == kc.get_feed_id('by-name')
    print(messages, messages2 == messages, watched, named, isinstance(f, kc.Feed))
"""
CLOUD_FEED = """
    import kachery_cloud as kcl
    f = kcl.create_feed()
    f.append_messages([{'a': 1}, {'a': 2}])
    g = kcl.load_feed(f.uri)
    same = g.feed_id == f.feed_id
    print(f.uri.startswith('kachery-feed://'), g.get_next_messages(timeout_sec=1), same)
    g.set_position(1)
    print(g.get_next_messages(), g.current_message_number)
"""


def run(node: NodeProcess, program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kachery_p2p.compat", "-c", textwrap.dedent(program)],
        env=node.environment | {"HOME": str(node.directory)} | environment,
        cwd=node.directory,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_feeds_of_the_older_packages_are_feeds_of_the_node(lab: Lab) -> None:
    alice = lab.node("alice").start()
    assert run(alice, CLIENT_EXAMPLE) == (
        "[{'message': 1}, {'message': 2}, {'message': 3}] True"
        " {'a': [{'message': 2}, {'message': 3}]} True True\n"
    )
    assert run(alice, CLOUD_FEED).splitlines() == [
        "True [{'a': 1}, {'a': 2}] True",
        "[{'a': 2}] 2",
    ]


def test_what_one_program_stores_another_loads_on_another_computer(lab: Lab) -> None:
    alice, bob = lab.pair()
    uris = run(
        alice,
        """
        import kachery_cloud as kcl, kachery_client as kc, kachery as ka
        open('large.dat', 'wb').write(bytes(range(256)) * 80_000)
        print(kcl.store_text('from alice', label='a.txt'))
        print(kc.store_file('large.dat'))
        print(kcl.store_text('hers alone', local=True))
        print(ka.store_json([1], uri_type=2))
        """,
    ).split()
    assert "?manifest=" in uris[1]
    program = f"""
        import warnings
        warnings.simplefilter('error')
        import kachery_cloud as kcl, kachery_client as kc, kachery as ka
        uris = {uris}
        print(kcl.load_text(uris[0], local_only=True), kc.load_text(uris[0]))
        print(kc.load_bytes(uris[1], 19_999_998, 20_000_003, channel='lab'))
        print(kc.load_file(uris[1], local_only=True))
        result = kcl.request_file(uris[0], timeout_sec=5)
        print(result.found, result.completed, result.local, kcl.load_file_info(uris[0])['size'])
        print(kcl.load_text(uris[0]), ka.load_json(uris[3]), kcl.load_text(uris[2]))
        print(kcl.load_text(uris[0], local_only=True), kcl.load_file_info(uris[2]))
        print(ka.get_file_info(uris[1])['url'] == uris[1].split('/large')[0])
        with ka.open_file(uris[1]) as f:
            f.seek(100)
            print(f.read(3))
    """
    assert run(bob, program.replace("warnings.simplefilter('error')", "")).splitlines() == [
        "None None",
        repr((bytes(range(256)) * 80_000)[19_999_998:20_000_003]),
        "None",
        "True True False 10",
        "from alice [1] None",
        "from alice None",
        "True",
        "b'def'",
    ]


def test_a_program_of_kachery_p2p_meets_members_by_a_place_alone(lab: Lab) -> None:
    alice = lab.node("alice").start()
    place = "127.0.0.1:" + alice.address.split("/")[4]
    bob = lab.node("bob").start("--bootstrap", place)
    assert bob.cli("status", "--wait", "30").returncode == 0
    known = json.loads((bob.directory / "config/state/places.json").read_text())
    assert known == {place: alice.node_id}
    uri = run(
        alice,
        """
        from kachery_p2p.compat import kachery_p2p as kp
        print(kp.store_object({'name': 'example-object'}))
        """,
    ).strip()
    program = f"""
        from kachery_p2p.compat import kachery_p2p as kp
        uri, alice = {uri!r}, {str(alice.node_id)!r}
        print(kp.load_object(uri, p2p=False), [one['nodeId'] == alice for one in kp.find_file(uri)])
        print(kp.load_object(uri, from_node=alice, from_channel='lab'))
        print([one['channelConfigUrl'] for one in kp.get_channels()])
        sf = kp.create_feed('mine').get_subfeed('main')
        sf.append_messages([{{'a': 1}}, {{'a': 2}}])
        sf.grant_write_access(node_id=alice)
        watch = {{'w': {{'feedId': kp.get_feed_id('mine'), 'subfeedName': 'main', 'position': 1}}}}
        count = kp.load_subfeed(sf.get_uri()).get_num_messages()
        print(kp.watch_for_new_messages(watch, wait_msec=1000), count)
        rules = [{{'nodeId': alice, 'write': True}}]
        print(sf.get_access_rules()['rules'] == rules, kp.stop_daemon())
    """
    assert run(bob, program).splitlines() == [
        "None [True]",
        "{'name': 'example-object'}",
        "['lab']",
        "{'w': [{'a': 2}]} 2",
        "True True",
    ]
