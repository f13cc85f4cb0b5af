//! Opening of both ends: sockets before the process gives up its rights, connections after.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use toll_child::confinement::Confinement;
use toll_protocol::traffic::request_response::{Background, Connection, Protocol, RequestResponse};

use super::super::TrafficError;
use super::super::stream::{self, ready};
use super::Carrier;
use crate::config::EndConfig;
use crate::control::Control;
use crate::socket::{self, SocketError};

/// What an end has when it is connected.
pub struct Opened<'b> {
    /// What carries the transactions.
    pub carrier: Carrier,
    /// The other end.
    pub peer: Ipv4Addr,
    /// Connections of the background: each, and whether this end sends on it.
    pub background: Option<(Vec<(TcpStream, bool)>, &'b Background)>,
    /// When the job is to be over.
    pub deadline: Duration,
}

/// Listens, says so, and takes what the other end connects.
///
/// # Errors
/// [`TrafficError`].
pub fn listening<'b>(
    control: &mut Control,
    config: &EndConfig,
    parameters: &RequestResponse,
    background: Option<(EndConfig, &'b Background)>,
    confinement: Confinement,
) -> Result<Opened<'b>, TrafficError> {
    /// What the first port is.
    enum First {
        Stream(TcpListener),
        Datagrams(UdpSocket),
    }
    let first = || match parameters.protocol {
        Protocol::Tcp => {
            socket::listen(config, 0).map(|(listener, address)| (First::Stream(listener), address))
        }
        Protocol::Udp => {
            socket::datagrams(config).map(|(socket, address)| (First::Datagrams(socket), address))
        }
    };
    let more = background.as_ref().map_or(0, |(config, _)| stream::ways(config).len());
    let of_background = background.as_ref().map_or(config, |(config, _)| config);
    let ((first, address), listeners) = stream::listen_in_a_row(of_background, first, more)?;
    confinement.enter(0)?;
    let (peer, deadline) = ready(control, config, address)?;
    let peer = *peer.ip();
    let background = match background {
        Some((config, background)) => {
            let flows = stream::accept(control, &config, &background.stream, &listeners, peer, deadline)?;
            Some((flows, background))
        }
        None => None,
    };
    let carrier = match (first, parameters.connection) {
        (First::Datagrams(socket), _) => Carrier::Datagrams(Arc::new(socket)),
        (First::Stream(listener), Connection::PerRequest) => Carrier::Listener(Arc::new(listener)),
        (First::Stream(listener), Connection::Persistent) => {
            let stream = socket::accept(control, &listener, address, peer, deadline)?;
            Carrier::Stream(Arc::new(at_once(stream, address)?))
        }
    };
    Ok(Opened { carrier, peer, background, deadline })
}

/// Connects to the other end.
///
/// # Errors
/// [`TrafficError`].
pub fn connecting<'b>(
    control: &mut Control,
    config: &EndConfig,
    parameters: &RequestResponse,
    background: Option<(EndConfig, &'b Background)>,
    confinement: Confinement,
) -> Result<Opened<'b>, TrafficError> {
    /// What will be connected.
    enum First {
        Stream(OwnedFd),
        Datagrams(UdpSocket),
        PerRequest,
    }
    let first = match (parameters.protocol, parameters.connection) {
        (Protocol::Udp, _) => First::Datagrams(socket::datagrams(config)?.0),
        (Protocol::Tcp, Connection::Persistent) => First::Stream(socket::open(config, 0)?),
        (Protocol::Tcp, Connection::PerRequest) => First::PerRequest,
    };
    let background = match background {
        Some((config, background)) => Some((stream::open(&config, &background.stream)?, background)),
        None => None,
    };
    confinement.enter(0)?;
    let (peer, deadline) = ready(control, config, config.bind)?;
    let background = match background {
        Some((sockets, background)) => {
            let first = SocketAddrV4::new(*peer.ip(), peer.port().wrapping_add(1));
            Some((stream::connect(control, sockets, first, deadline)?, background))
        }
        None => None,
    };
    let carrier = match first {
        First::Stream(socket) => {
            Carrier::Stream(Arc::new(at_once(socket::connect(control, socket, peer, deadline)?, peer)?))
        }
        First::Datagrams(socket) => {
            let failed = |source| SocketError::Io { call: "connect", address: peer, source };
            socket.connect(peer).map_err(failed)?;
            Carrier::Datagrams(Arc::new(socket))
        }
        First::PerRequest => Carrier::PerRequest(peer),
    };
    Ok(Opened { carrier, peer: *peer.ip(), background, deadline })
}

/// A connection on which a small write leaves at once (TCP_NODELAY).
fn at_once(stream: TcpStream, address: SocketAddrV4) -> Result<TcpStream, SocketError> {
    let failed = |source| SocketError::Io { call: "setsockopt of TCP_NODELAY", address, source };
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}
