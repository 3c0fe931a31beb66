"""What is particular to the in-memory twin: networks are worlds of their own."""

from holdfast.wire import MemoryNetwork


def test_two_networks_share_no_addresses():
    here, there = MemoryNetwork(), MemoryNetwork()
    here.station().bind("memory://hub")
    there.station().bind("memory://hub")
    assert here.hub("memory://hub") is not there.hub("memory://hub")


def test_a_spoke_without_a_hub_is_refused_until_there_is_one():
    network = MemoryNetwork()
    spoke = network.station().connect("memory://hub", b"me")
    assert not spoke.send(b"anybody?")
    station = network.station()
    station.bind("memory://hub")
    assert spoke.send(b"anybody?")
    assert station.receive(0).peer == b"me"


def test_a_closed_station_takes_nothing():
    network = MemoryNetwork()
    station = network.station()
    hub = station.bind("memory://hub")
    spoke_station = network.station()
    spoke = spoke_station.connect("memory://hub", b"me")
    spoke.send(b"x")
    spoke_station.close()
    assert not hub.send(b"me", b"y")
    station.close()
    assert not spoke.send(b"z")
