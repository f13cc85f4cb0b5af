//! The lab's network: bridges, veth pairs, addresses. netlink only.

use std::os::fd::{AsFd, AsRawFd};

use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};
use toll_protocol::campaign;
use toll_protocol::units::InterfaceAddress;

use super::{LabError, LabHost, ORCHESTRATOR, PREFIX, shaping};

/// The NIC of each host that trials run over.
pub const TEST_NIC: &str = "eth0";
const CONTROL_NIC: &str = "ctl0";
const TEST_BRIDGE: &str = "test";
const CONTROL_BRIDGE: &str = "control";

/// Says what was being done when a netlink request failed.
trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, LabError>;
}

impl<T> Doing<T> for Result<T, rtnetlink::Error> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, LabError> {
        self.map_err(|source| LabError::Network { what: what(), source })
    }
}

/// Joins `hosts` by the two bridges.
pub(super) async fn connect(hosts: &[LabHost], spec: &campaign::Lab) -> Result<(), LabError> {
    quiet_ipv6()?;
    let handle = netlink()?;
    up(&handle, "lo").await?;
    let test = bridge(&handle, TEST_BRIDGE, u32::from(spec.mtu)).await?;
    let control = bridge(&handle, CONTROL_BRIDGE, 1500).await?;
    address(&handle, control, InterfaceAddress { address: ORCHESTRATOR, prefix: PREFIX }).await?;
    for (index, host) in hosts.iter().enumerate() {
        let n = index + 1;
        let test_port = format!("test{n}");
        veth(&handle, &test_port, test, TEST_NIC, u32::from(spec.mtu), host).await?;
        veth(&handle, &format!("control{n}"), control, CONTROL_NIC, 1500, host).await?;
        if let Some(rate) = spec.rate {
            let port = index_of(&handle, &test_port).await?;
            shaping::limit(&handle, port, rate, spec.mtu)
                .await
                .doing(|| format!("limiting {test_port} to {rate} (needs the kernel's sch_tbf)"))?;
        }
        host.namespace.run(|| inside(host, spec))??;
    }
    Ok(())
}

/// Sets a host's side up; runs on a thread in its namespace.
fn inside(host: &LabHost, spec: &campaign::Lab) -> Result<(), LabError> {
    quiet_ipv6()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| LabError::Io { what: "starting a runtime".into(), source })?;
    runtime.block_on(async {
        let handle = netlink()?;
        up(&handle, "lo").await?;
        let control = up(&handle, CONTROL_NIC).await?;
        let [a, b, _, last] = ORCHESTRATOR.octets();
        let own = host.native.address.octets()[3].min(last - 1);
        address(&handle, control, InterfaceAddress { address: [a, b, 0, own].into(), prefix: PREFIX })
            .await?;
        let nic = up(&handle, TEST_NIC).await?;
        address(&handle, nic, host.native).await?;
        if let Some(rate) = spec.rate {
            shaping::limit(&handle, nic, rate, spec.mtu)
                .await
                .doing(|| format!("limiting {TEST_NIC} of {} to {rate}", host.name))?;
        }
        Ok(())
    })
}

/// Router solicitations and MLD reports would be frames that nobody asked for.
fn quiet_ipv6() -> Result<(), LabError> {
    for which in ["all", "default"] {
        let file = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
        match std::fs::write(&file, "1") {
            // A kernel without IPv6 is as quiet.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(LabError::Io { what: format!("writing {file}"), source: error });
            }
            _ => {}
        }
    }
    Ok(())
}

/// A netlink connection in the namespace of the calling thread.
fn netlink() -> Result<Handle, LabError> {
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(|source| LabError::Io { what: "opening a netlink socket".into(), source })?;
    // It ends when the last handle is dropped.
    tokio::spawn(connection);
    Ok(handle)
}

async fn bridge(handle: &Handle, name: &str, mtu: u32) -> Result<u32, LabError> {
    let message = LinkBridge::new(name).mcast_snooping(false).forward_delay(0).mtu(mtu).up().build();
    handle.link().add(message).execute().await.doing(|| format!("making bridge {name}"))?;
    index_of(handle, name).await
}

/// A veth pair: `port` on `bridge` here, `nic` in the host.
async fn veth(
    handle: &Handle,
    port: &str,
    bridge: u32,
    nic: &str,
    mtu: u32,
    host: &LabHost,
) -> Result<(), LabError> {
    let peer = format!("{port}p");
    let doing = || format!("making {nic} of {}", host.name);
    handle.link().add(LinkVeth::new(port, &peer).mtu(mtu).build()).execute().await.doing(doing)?;
    set(
        handle,
        LinkMessageBuilder::<LinkUnspec>::new().name(port).mtu(mtu).controller(bridge).up().build(),
        doing,
    )
    .await?;
    let index = index_of(handle, &peer).await?;
    set(handle, by_index(index).mtu(mtu).build(), doing).await?;
    let namespace = host.namespace.as_fd().as_raw_fd();
    set(handle, by_index(index).name(nic).setns_by_fd(namespace).build(), doing).await
}

fn by_index(index: u32) -> LinkMessageBuilder<LinkUnspec> {
    LinkMessageBuilder::<LinkUnspec>::new().index(index)
}

async fn set(handle: &Handle, message: LinkMessage, what: impl FnOnce() -> String) -> Result<(), LabError> {
    handle.link().set(message).execute().await.doing(what)
}

async fn up(handle: &Handle, name: &str) -> Result<u32, LabError> {
    let index = index_of(handle, name).await?;
    set(handle, by_index(index).up().build(), || format!("bringing {name} up")).await?;
    Ok(index)
}

async fn address(handle: &Handle, index: u32, address: InterfaceAddress) -> Result<(), LabError> {
    let request = handle.address().add(index, address.address.into(), address.prefix);
    request.execute().await.doing(|| format!("setting address {address}"))
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32, LabError> {
    use futures_util::TryStreamExt;
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    let found = links.try_next().await.doing(|| format!("looking for {name}"))?;
    found.map(|link| link.header.index).ok_or_else(|| LabError::NoInterface { name: name.to_owned() })
}
