//! Set-up, tear-down and sweep of a host's links.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use libtest_mimic::Failed;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use toll_node_agent::network::{Network, NetworkConfig, NetworkError, Station, bridge_name, tap_name};
use toll_protocol::facts::Wire;
use toll_protocol::trial::TrialId;
use toll_protocol::units::MacAddress;

use crate::Test;
use crate::namespace::Namespace;

pub const TESTS: &[Test] = &[
    ("links::a_trial_leaves_the_host_as_it_was", a_trial_leaves_the_host_as_it_was),
    ("links::a_port_is_attached", a_port_is_attached),
    ("links::the_sweep_takes_ours_and_nothing_else", the_sweep_takes_ours_and_nothing_else),
    ("links::a_nic_that_the_host_needs_is_refused", a_nic_that_the_host_needs_is_refused),
    ("links::a_nic_that_may_be_needed_is_refused", a_nic_that_may_be_needed_is_refused),
    ("links::an_unfit_nic_is_refused", an_unfit_nic_is_refused),
    ("links::a_nic_without_carrier_is_refused", a_nic_without_carrier_is_refused),
    ("links::a_doubted_address_is_asked_for_again", a_doubted_address_is_asked_for_again),
    ("links::a_link_of_another_with_the_trials_name_stays", a_link_of_another_stays),
    ("links::one_agent_for_a_host", one_agent_for_a_host),
];

const TRIAL: TrialId = TrialId::new(0x0000_5eed_0001);
const NIC: &str = "nic0";

async fn messages(handle: &Handle) -> Vec<LinkMessage> {
    handle.link().get().execute().try_collect().await.expect("the links")
}

fn name(message: &LinkMessage) -> String {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_default()
}

pub async fn index(handle: &Handle, wanted: &str) -> Option<u32> {
    messages(handle).await.iter().find(|message| name(message) == wanted).map(|message| message.header.index)
}

pub async fn all(handle: &Handle) -> Vec<(String, u32, Option<String>)> {
    let links = messages(handle).await;
    let of = |index: u32| links.iter().find(|link| link.header.index == index).map(name);
    let row = |message: &LinkMessage| {
        let (mut mtu, mut controller) = (0, None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Mtu(bytes) => mtu = *bytes,
                LinkAttribute::Controller(index) => controller = of(*index),
                _ => {}
            }
        }
        (name(message), mtu, controller)
    };
    links.iter().map(row).collect()
}

/// What a host's network looks like to its owner: links with their MAC address, MTU, controller and whether they are
/// up, addresses and routes. Of IPv4 alone, since the kernel gives links IPv6 addresses when it finds the time.
pub async fn state(handle: &Handle) -> Vec<String> {
    let mut lines = Vec::new();
    for message in messages(handle).await {
        let mut kept: Vec<String> = vec![format!("up {}", message.header.flags.contains(LinkFlags::Up))];
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(_)
                | LinkAttribute::Mtu(_)
                | LinkAttribute::Address(_)
                | LinkAttribute::Promiscuity(_)
                | LinkAttribute::Controller(_) => kept.push(format!("{attribute:?}")),
                _ => {}
            }
        }
        lines.push(format!("link {} {}", message.header.index, kept.join(" ")));
    }
    let addresses: Vec<AddressMessage> =
        handle.address().get().execute().try_collect().await.expect("the addresses");
    for message in addresses.iter().filter(|message| message.header.family == AddressFamily::Inet) {
        let local = message.attributes.iter().find(|found| matches!(found, AddressAttribute::Local(_)));
        lines.push(format!("address {} {local:?}/{}", message.header.index, message.header.prefix_len));
    }
    let mut question = RouteMessage::default();
    question.header.address_family = AddressFamily::Inet;
    let routes: Vec<RouteMessage> =
        handle.route().get(question).execute().try_collect().await.expect("the routes");
    for route in routes {
        let known = |found: &&RouteAttribute| !matches!(found, RouteAttribute::CacheInfo(_));
        let attributes: Vec<_> = route.attributes.iter().filter(known).collect();
        lines.push(format!("route {:?} {attributes:?}", route.header));
    }
    lines
}

/// A namespace with a NIC that has an address: one end of a veth pair whose other end is in the second namespace.
fn host() -> (Namespace, Namespace) {
    let (host, wire) = (Namespace::new(), Namespace::new());
    host.join(NIC, &wire, "far0");
    host.address(NIC, Ipv4Addr::new(10, 77, 0, 1));
    wire.address("far0", Ipv4Addr::new(10, 77, 0, 2));
    (host, wire)
}

async fn open_on(nic: &str) -> Result<Network, NetworkError> {
    let (nic, wire) = (Some(nic.to_owned()), Some(Wire::Exclusive));
    Network::open(NetworkConfig { nic, wire, ..NetworkConfig::default() }).await
}

async fn open() -> Network {
    open_on(NIC).await.expect("the network opens")
}

/// A virtual end whose path has this MTU.
fn station(mtu: u16) -> Station {
    Station { mac: MacAddress([0x52, 0x54, 0, 0, 0, 1]), address: Ipv4Addr::new(10, 77, 0, 101), mtu }
}

fn a_trial_leaves_the_host_as_it_was() -> Result<(), Failed> {
    let (host, _wire) = host();
    let before = host.links();
    host.run(async || {
        let network = open().await;
        assert_eq!(network.native(1500).await.expect("an address").address.to_string(), "10.77.0.1/24");
        network.set_up(TRIAL, &station(1400)).await.expect("the bridge");
        // The kernel's addresses follow an interface up at once: none may be there.
        let file = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
        assert!(!file.contains(&bridge_name(TRIAL)), "{file}");
        let snooping = std::fs::read_to_string(format!(
            "/sys/class/net/{}/bridge/multicast_snooping",
            bridge_name(TRIAL)
        ));
        // The file is there only if /sys is that of this namespace.
        if let Ok(snooping) = snooping {
            assert_eq!(snooping.trim(), "0");
        }
    });
    let during = host.links();
    let bridge = bridge_name(TRIAL);
    assert!(during.contains(&(NIC.to_owned(), 1500, Some(bridge.clone()))), "{during:?}");
    assert!(during.contains(&(bridge.clone(), 1400, None)), "{during:?}");
    host.run(async || assert_eq!(open().await.tear_down(TRIAL).await, Vec::<String>::new()));
    assert_eq!(host.links(), before);
    host.run(async || {
        let network = open().await;
        // Again, and for a trial that never was.
        assert_eq!(network.tear_down(TRIAL).await, Vec::<String>::new());
        assert_eq!(network.native(1500).await.expect("kept").address.to_string(), "10.77.0.1/24");
    });
    Ok(())
}

fn a_port_is_attached() -> Result<(), Failed> {
    let (host, _wire) = host();
    let before = host.links();
    let tap = tap_name(TRIAL);
    host.run(async || {
        let network = open().await;
        network.set_up(TRIAL, &station(1500)).await.expect("the bridge");
        let error = network.attach(TRIAL, &station(1500)).await.expect_err("there is no TAP yet");
        assert!(error.to_string().contains(&tap), "{error}");
    });
    // An interface of the TAP's name is enough for the bridge; trials with a VMM put a real one here.
    host.with_netlink(async |handle| {
        handle.link().add(LinkVeth::new(&tap, "guest0").build()).execute().await.expect("a port");
    });
    host.run(async || open().await.attach(TRIAL, &station(1300)).await.expect("attached"));
    let during = host.links();
    assert!(during.contains(&(tap.clone(), 1300, Some(bridge_name(TRIAL)))), "{during:?}");
    host.run(async || assert_eq!(open().await.tear_down(TRIAL).await, Vec::<String>::new()));
    // The other end of the pair goes with the port.
    assert_eq!(host.links(), before);
    Ok(())
}

fn the_sweep_takes_ours_and_nothing_else() -> Result<(), Failed> {
    let (host, _wire) = host();
    host.with_netlink(async |handle| {
        // Looks like ours by its name only.
        let other = LinkBridge::new("tb00000000beef").up().build();
        handle.link().add(other).execute().await.expect("a bridge");
    });
    let before = host.links();
    host.with_netlink(async |handle| {
        // What an agent leaves that is killed before it could give the alias.
        let unfinished = LinkMessageBuilder::<LinkBridge>::new("tb00000000dead").build();
        handle.link().add(unfinished).execute().await.expect("a bridge");
    });
    host.run(async || {
        assert_eq!(open().await.sweep().await.expect("a sweep"), (vec!["tb00000000dead".to_owned()], vec![]));
    });
    host.run(async || open().await.set_up(TRIAL, &station(1500)).await.expect("the bridge"));
    host.run(async || {
        let network = open().await;
        let (found, left) = network.sweep().await.expect("a sweep");
        assert_eq!((found, left), (vec![bridge_name(TRIAL)], vec![]));
        assert_eq!(network.sweep().await.expect("a sweep"), (vec![], vec![]));
    });
    assert_eq!(host.links(), before);
    Ok(())
}

fn a_nic_that_the_host_needs_is_refused() -> Result<(), Failed> {
    let (host, _wire) = host();
    let before = host.links();
    let far = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
    let why = host.run(async || {
        let network = open().await;
        network.dialled(far);
        network.set_up(TRIAL, &station(1500)).await.expect_err("the way to the orchestrator").to_string()
    });
    assert_eq!(
        why,
        "network interface nic0 is the way to the orchestrator 10.77.0.2: name a NIC for tests alone, or use --wire \
         macvtap"
    );
    // The main table, one that rules lead to, and one whose number the route's header has no room for.
    for table in [254, 7, 1_000] {
        let gateway = Ipv4Addr::new(10, 77, 0, 2);
        let route = || RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).table_id(table).build();
        host.with_netlink(async |handle| {
            handle.route().add(route()).execute().await.expect("a default route");
        });
        let why = host.run(async || {
            open().await.set_up(TRIAL, &station(1500)).await.expect_err("the default route").to_string()
        });
        assert!(why.contains("carries a default route"), "{table}: {why}");
        host.with_netlink(async |handle| {
            handle.route().del(route()).execute().await.expect("removed");
        });
    }
    for http in ["10.77.0.1", "fd00::1"] {
        let http: IpAddr = http.parse()?;
        host.with_netlink(async |handle| {
            let index = index(&handle, NIC).await.expect("the NIC");
            if http.is_ipv6() {
                handle.address().add(index, http, 64).execute().await.expect("an address");
            }
        });
        let config = NetworkConfig {
            nic: Some(NIC.to_owned()),
            wire: Some(Wire::Exclusive),
            http: Some(http),
            ..NetworkConfig::default()
        };
        let why = host.run(async || Network::open(config).await.expect_err("probes").to_string());
        assert!(why.contains(&format!("nic0 has the address {http}, where probes")), "{why}");
    }
    assert_eq!(host.links(), before);
    Ok(())
}

fn a_nic_that_may_be_needed_is_refused() -> Result<(), Failed> {
    let ((host, _wire), router) = (host(), Namespace::new());
    host.join("control", &router, "to-host");
    host.address("control", Ipv4Addr::new(10, 99, 0, 2));
    router.address("to-host", Ipv4Addr::new(10, 99, 0, 1));
    host.set_up("lo");
    host.with_netlink(async |handle| {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::new(10, 96, 0, 0), 16)
            .gateway(Ipv4Addr::new(10, 99, 0, 1))
            .build();
        handle.route().add(route).execute().await.expect("a route");
    });
    let before = host.links();
    let set_up = |orchestrator: Ipv4Addr, nic_is_spare| {
        host.run(async || {
            let config = NetworkConfig {
                nic: Some(NIC.to_owned()),
                wire: Some(Wire::Exclusive),
                nic_is_spare,
                ..NetworkConfig::default()
            };
            let network = Network::open(config).await.expect("the network opens");
            network.dialled(orchestrator.into());
            let done = network.set_up(TRIAL, &station(1500)).await.map_err(|error| error.to_string());
            assert_eq!(network.tear_down(TRIAL).await, Vec::<String>::new());
            done.map(drop)
        })
    };
    assert_eq!(set_up(Ipv4Addr::new(10, 99, 0, 1), false), Ok(()), "on the network of another NIC");
    for (orchestrator, why) in [
        // As a Service of Kubernetes has it.
        (Ipv4Addr::new(10, 96, 0, 47), "10.96.0.47 is behind a gateway"),
        // A forwarder of this host.
        (Ipv4Addr::LOCALHOST, "127.0.0.1 is this host's own"),
        (Ipv4Addr::new(10, 99, 0, 2), "10.99.0.2 is this host's own"),
        (Ipv4Addr::new(192, 0, 2, 1), "192.0.2.1 has no route"),
    ] {
        let refused = set_up(orchestrator, false).expect_err("it can't be known");
        assert!(refused.contains(why) && refused.contains("--nic-is-spare"), "{refused}");
        assert_eq!(set_up(orchestrator, true), Ok(()), "{orchestrator}");
    }
    // What is known is refused whatever is said.
    let refused = set_up(Ipv4Addr::new(10, 77, 0, 2), true).expect_err("the way");
    assert!(refused.contains("is the way to the orchestrator"), "{refused}");
    assert_eq!(host.links(), before);
    Ok(())
}

fn an_unfit_nic_is_refused() -> Result<(), Failed> {
    let (host, _wire) = host();
    let why = |network: Network, mtu| async move {
        let native = network.native(mtu).await.map_or_else(|error| error.to_string(), |_| String::new());
        (network.set_up(TRIAL, &station(mtu)).await.expect_err("unfit").to_string(), native)
    };
    let (bridged, native) = host.run(async || why(open().await, 9000).await);
    let what = "network interface nic0 has an MTU of 1500 bytes and the trial asks for 9000: ";
    assert!(bridged.starts_with(what), "{bridged}");
    assert!(native.contains("has an MTU of 1500 bytes"), "{native}");
    let missing = host.run(async || open_on("nic7").await.expect_err("no such NIC").to_string());
    assert_eq!(missing, "there is no network interface nic7");
    host.with_netlink(async |handle| {
        let alone = LinkVeth::new("alone0", "alone1").up().build();
        handle.link().add(alone).execute().await.expect("a pair");
        let far = index(&handle, "alone1").await.expect("the other end");
        handle.link().set(LinkUnspec::new_with_index(far).up().build()).execute().await.expect("up");
        let index = index(&handle, "alone0").await.expect("its end");
        let address = Ipv4Addr::new(10, 78, 0, 1).into();
        handle.address().add(index, address, 32).execute().await.expect("an address");
    });
    let native = host.run(async || {
        let network = open_on("alone0").await.expect("opens");
        network.native(1500).await.map_err(|e| e.to_string())
    });
    assert!(native.expect_err("no room").contains("alone0 has the address 10.78.0.1/32"));
    host.with_netlink(async |handle| {
        let index = index(&handle, NIC).await.expect("the NIC");
        handle.link().set(LinkUnspec::new_with_index(index).down().build()).execute().await.expect("down");
    });
    let (bridged, native) = host.run(async || why(open().await, 1500).await);
    assert!(bridged.contains("is down") && native.contains("is down"), "{bridged} {native}");
    Ok(())
}

fn a_nic_without_carrier_is_refused() -> Result<(), Failed> {
    let (host, wire) = host();
    wire.with_netlink(async |handle| {
        let index = index(&handle, "far0").await.expect("the other end");
        handle.link().set(LinkUnspec::new_with_index(index).down().build()).execute().await.expect("down");
    });
    host.run(async || {
        let network = open().await;
        let native = network.native(1500).await.expect_err("no carrier").to_string();
        let bridged = network.set_up(TRIAL, &station(1500)).await.expect_err("no carrier").to_string();
        for why in [native, bridged] {
            assert!(why.starts_with("network interface nic0 has no carrier: "), "{why}");
        }
    });
    Ok(())
}

fn a_doubted_address_is_asked_for_again() -> Result<(), Failed> {
    let (host, wire) = host();
    host.bridge("br0");
    host.enslave(NIC, "br0");
    let config =
        NetworkConfig { nic: Some("br0".to_owned()), wire: Some(Wire::Bridge), ..NetworkConfig::default() };
    host.run(async || {
        let network = Network::open(config).await.expect("the network opens");
        let station = station(1500);
        network.set_up(TRIAL, &station).await.expect("nobody has it");
        wire.address("far0", station.address);
        network.set_up(TRIAL, &station).await.expect("it was free a moment ago");
        network.doubt(station.address);
        let why = network.set_up(TRIAL, &station).await.expect_err("somebody has it now").to_string();
        assert!(why.starts_with("address 10.77.0.101 is in use by "), "{why}");
    });
    Ok(())
}

fn a_link_of_another_stays() -> Result<(), Failed> {
    let (host, _wire) = host();
    host.bridge(&bridge_name(TRIAL));
    host.with_netlink(async |handle| {
        let name = tap_name(TRIAL);
        handle.link().add(LinkVeth::new(&name, "other0").build()).execute().await.expect("a pair");
        let index = index(&handle, &name).await.expect("its end");
        let named = LinkUnspec::new_with_index(index).alias("a virtual machine").build();
        handle.link().set(named).execute().await.expect("named");
    });
    let before = host.links();
    host.run(async || assert_eq!(open().await.tear_down(TRIAL).await, Vec::<String>::new()));
    assert_eq!(host.links(), before);
    Ok(())
}

fn one_agent_for_a_host() -> Result<(), Failed> {
    let (host, wire) = host();
    host.run(async || {
        let first = open().await;
        let error = open_on(NIC).await.expect_err("a second agent");
        assert!(error.to_string().contains("another agent runs"), "{error}");
        drop(first);
        drop(open().await);
    });
    wire.run(async || drop(open_on("far0").await.expect("another host")));
    Ok(())
}
