//! Opens the ports of a virtual end: how each of the list in `protocol/src/port.rs` is opened, and what stands around any.

use std::fs::File;
use std::io::BufWriter;
use std::net::Ipv4Addr;

use toll_protocol::child::VmmPort;
use toll_protocol::units::InterfaceAddress;
use toll_vnic::port::capture::Capture;
use toll_vnic::port::hub::Hub;
use toll_vnic::port::impaired::{Impaired, Impairments};
use toll_vnic::port::macvtap::{Device, Macvtap};
use toll_vnic::port::nat::Nat;
use toll_vnic::port::tap::Tap;
use toll_vnic::port::{Framing, Port, PortError};

use crate::config::EndConfig;

/// The host side of the adapter, with headers if the adapter's offloads need them: a port for each queue pair.
///
/// # Errors
/// [`PortError::Open`], with what to do.
pub fn open(config: &EndConfig) -> Result<Vec<Box<dyn Port>>, PortError> {
    let framing = if config.adapter.offloads() { Framing::VirtioNetHeader } else { Framing::Bare };
    let pairs = config.adapter.queue_pairs().count();
    let mut port: Box<dyn Port> = match &config.port {
        VmmPort::Tap { name } if pairs > 1 => return Ok(boxed(Tap::create_queues(name, framing, pairs)?)),
        VmmPort::Tap { name } => Box::new(Tap::create(name, framing)?),
        VmmPort::Macvtap { name, major, minor } => {
            let device = Device { major: *major, minor: *minor };
            if pairs > 1 {
                return Ok(boxed(Macvtap::open_queues(name, device, framing, pairs)?));
            }
            Box::new(Macvtap::open(name, device, framing)?)
        }
        VmmPort::Hub { descriptor } => Box::new(Hub::inherited(*descriptor, framing)?),
        VmmPort::Nat { outside } => {
            // Who has one was seen when the configuration was taken.
            let gateway = config.gateway.unwrap_or(Ipv4Addr::UNSPECIFIED);
            let gateway = InterfaceAddress { address: gateway, ..config.address };
            Box::new(Nat::new(gateway, outside.clone(), config.mtu)?)
        }
    };
    if let Some(impairments) = &config.impairments {
        port = Box::new(Impaired::new(port, Impairments::of(impairments, config.seed))?);
    }
    if let Some((capture, path)) = &config.capture {
        let file = File::create(path).map_err(|source| PortError::Open {
            port: format!("capture file {}", path.display()),
            advice: "let the agent's --captures be a folder that it may write to",
            source,
        })?;
        port = Box::new(Capture::new(port, Box::new(BufWriter::new(file)), capture.limit.0)?);
    }
    Ok(vec![port])
}

fn boxed<P: Port + 'static>(ports: Vec<P>) -> Vec<Box<dyn Port>> {
    ports.into_iter().map(|port| -> Box<dyn Port> { Box::new(port) }).collect()
}
